"""The decoder over a base file: BitNet's arithmetic, an adapter on its linears, and a cache for decoding.

    RMSNorm -> q, k, v -> rotary (half-rotation) -> grouped-query attention -> sub-norm -> o
    RMSNorm -> act(gate) * up -> sub-norm -> down

(arXiv:2402.17764, arXiv:2504.12285.) Shapes: b sequences, t tokens, d hidden, h heads, e head size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sterna.train.base import Architecture, Base
from sterna.train.linear import PlaneSum, frozen_linear
from sterna.train.pages import release
from sterna_kernels import variant
from sterna_kernels.torch import Backward, TernaryLinear
from sterna_kernels.torch_attention import attend_in_place, attends, attention
from sterna_kernels.torch_layer import LINEARS, NO_ADAPTER, FrozenLayer, LowRank, put_heads
from sterna_kernels.torch_rows import (
    Keep,
    Shelf,
    as_it_is,
    gated,
    in_bfloat16,
    rms_norm,
    rms_norm_beside,
    rotated,
)

BFLOAT16_TOKENS = 64
"""From so many tokens on, attention in bfloat16 is worth its conversions on a processor with AMX."""

NO_ADAPTERS = [NO_ADAPTER] * len(LINEARS)


@dataclass(frozen=True, slots=True)
class Keeping:
    """What a training step keeps for its backward pass.

    Attributes:
        rounded: in bfloat16, where nothing must be exact; attention runs in it where the processor has AMX.
        recomputed: so many of the first layers keep only their input.
    """

    rounded: bool = False
    recomputed: int = 0


class Correction(Protocol):
    """What the decoder asks of an adapter."""

    def applied(self, name: str, linear: TernaryLinear, x: Tensor, *, to_bfloat16: bool = False) -> Tensor:
        """What the linear ``name`` gives at ``x``, corrected and, if asked, rounded."""

    def low_ranks(self, layer: int) -> Sequence[LowRank] | None:
        """Its factors of each of LINEARS, where they are all there is to it; None while they train."""


KEEP_ALL = Keeping()
"""Everything, as it is."""


class KeyValueCache:
    """Keys and values of the tokens read so far, for one decoding run.

    Attributes:
        length: tokens held.
    """

    def __init__(self, architecture: Architecture, *, sequences: int, tokens: int) -> None:
        shape = (architecture.layers, sequences, architecture.kv_heads, tokens, architecture.head_size)
        self.keys = torch.empty(shape)
        self.values = torch.empty(shape)
        self.length = 0

    @property
    def capacity(self) -> int:
        """Tokens it can hold."""
        return self.keys.shape[3]

    def extended(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of one layer, new ones [b, kv, t, e] last; the caller moves ``length``."""
        end = self.length + key.shape[2]
        self.keys[layer, :, :, self.length : end] = key
        self.values[layer, :, :, self.length : end] = value
        if self.length == 0:
            return key, value
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def with_rows(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The same without gradients, from [b, t, kv, e] to [b, all, kv, e]."""
        put_heads(key, self.keys[layer], self.length)
        put_heads(value, self.values[layer], self.length)
        if self.length == 0:
            return key, value
        end = self.length + key.shape[1]
        return self.keys[layer, :, :, :end].transpose(1, 2), self.values[layer, :, :, :end].transpose(1, 2)


@dataclass(frozen=True, slots=True)
class _Layer:
    linears: Mapping[str, TernaryLinear | PlaneSum]
    norms: Mapping[str, Tensor]
    packed: Sequence[NDArray[np.uint8]]
    native: FrozenLayer | None

    def release_pages(self) -> None:
        for matrix in self.packed:
            release(matrix)


@dataclass(frozen=True, slots=True)
class _Pass:
    """What all layers of one pass share; ``attention`` is the type it runs in."""

    cos: Tensor
    sin: Tensor
    lora: Correction | None
    cache: KeyValueCache | None
    attention: torch.dtype
    keep: Keep

    @property
    def rounded(self) -> bool:
        """What is kept is in bfloat16, so gate and up are made so."""
        return self.keep is not as_it_is


class Decoder:
    """The frozen base, ready to run. Its matrices stay in the mapped file; norms and angles are copied."""

    def __init__(self, base: Base, *, backward: Backward, returns_pages: bool = False) -> None:
        """
        Args:
            returns_pages: a pass without a cache gives the pages of a layer back to the system once it is
                through with it, forward and backward, so that the base is never resident as a whole.
        """
        self.architecture = base.architecture
        self._embedding = base.embedding
        self._backward = backward
        self._rounds_attention = backward != "fp32" and variant() == "amx"
        self._layers = [self._open_layer(base, layer) for layer in range(base.architecture.layers)]
        self._returns_pages = returns_pages
        self._final_norm = torch.tensor(base.vector("final_norm"))
        self._rotary = _rotary_tables(base.architecture, 0)

    def hidden(
        self,
        tokens: NDArray[np.int64],
        *,
        lora: Correction | None = None,
        cache: KeyValueCache | None = None,
        keeping: Keeping = KEEP_ALL,
    ) -> Tensor:
        """The final, normed hidden states [b, t, d] of tokens [b, t].

        Args:
            cache: tokens follow those it holds, and are added to it.
            keeping: matters only where gradients are wanted.

        Raises:
            ValueError: more tokens than the base's context or the cache takes.
        """
        start = cache.length if cache is not None else 0
        end = start + tokens.shape[1]
        if end > self.architecture.max_context or (cache is not None and end > cache.capacity):
            room = (
                self.architecture.max_context
                if cache is None
                else min(cache.capacity, self.architecture.max_context)
            )
            raise ValueError(f"{end} tokens, there is room for {room}")
        cos, sin = self._rotation(start, end)
        h = self._embedded(tokens)
        native = self._native_layers(lora)
        if native is not None:
            self._pass_natively(native, h, cos, sin, cache)
            if cache is not None:
                cache.length = end
            return rms_norm(h, self._final_norm, self.architecture.norm_eps)
        fleeting = _Pass(
            cos,
            sin,
            lora,
            cache,
            attention=self._attention_dtype(tokens.shape[1], keeping, cache),
            keep=in_bfloat16 if keeping.rounded else as_it_is,
        )
        lasting = replace(fleeting, keep=self._keep(tokens.size, keeping))
        returns_pages = self._returns_pages and cache is None
        for number, layer in enumerate(self._layers):
            if returns_pages and h.requires_grad:
                # The gradient of its input is the last that a layer has to do.
                h.register_hook(lambda _, layer=layer: layer.release_pages())  # type: ignore[no-untyped-call]
            if number < keeping.recomputed and torch.is_grad_enabled():
                h = checkpoint(
                    self._layer, number, h, fleeting, use_reentrant=False, preserve_rng_state=False
                )
            else:
                h = self._layer(number, h, lasting)
            if returns_pages:
                layer.release_pages()
        if cache is not None:
            cache.length = end
        return rms_norm(h, self._final_norm, self.architecture.norm_eps)

    def activation_bytes(self, tokens: int, *, rounded: bool) -> int:
        """About what one layer keeps for the backward pass of ``tokens`` tokens without being recomputed."""
        a = self.architecture
        attention, kv = a.heads * a.head_size, a.kv_heads * a.head_size
        # Norms keep their inputs; attention its q, k, v and output; the feed-forward gate and up.
        kept = self._shelved(1)
        seen = 2 * attention + 2 * kv
        return tokens * (
            kept * (2 if rounded else 4) + seen * (2 if rounded and self._rounds_attention else 4)
        )

    def _native_layers(self, lora: Correction | None) -> list[tuple[FrozenLayer, Sequence[LowRank]]] | None:
        """Every layer and its part of the adapter; None where one of them cannot pass natively."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        layers = []
        for number, layer in enumerate(self._layers):
            adapter = NO_ADAPTERS if lora is None else lora.low_ranks(number)
            if layer.native is None or adapter is None:
                return None
            layers.append((layer.native, adapter))
        return layers

    def _pass_natively(
        self,
        layers: Sequence[tuple[FrozenLayer, Sequence[LowRank]]],
        h: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: KeyValueCache | None,
    ) -> None:
        """Take ``h`` [b, t, d] through all layers, in place."""
        if cache is not None and h.shape[:2] == (1, 1):
            for (native, adapter), keys, values in zip(
                layers, cache.keys[:, 0], cache.values[:, 0], strict=True
            ):
                native.pass_token(
                    h[0, 0], adapter, cos=cos[0], sin=sin[0], keys=keys, values=values, length=cache.length
                )
            return
        projections = layers[0][0].projections(h, self._attention_dtype(h.shape[1], KEEP_ALL, cache))
        for number, (native, adapter) in enumerate(layers):
            native.project(h, adapter, cos=cos, sin=sin, to=projections)
            q, k, v = projections
            if cache is not None:
                k, v = cache.with_rows(number, k, v)
            if not attend_in_place(q, k, v):
                heads = _attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
                q = heads.transpose(1, 2).contiguous()
            native.complete(h, adapter, q)
            if self._returns_pages and cache is None:
                self._layers[number].release_pages()

    def _layer(self, number: int, h: Tensor, pass_: _Pass) -> Tensor:
        layer = self._layers[number]
        a, eps, keep = self.architecture, self.architecture.norm_eps, pass_.keep
        b, t, _ = h.shape
        lora, dtype = pass_.lora, pass_.attention

        def linear(name: str, x: Tensor, *, to_bfloat16: bool = False) -> Tensor:
            frozen = layer.linears[name]
            if lora is None:
                # A module's call looks for hooks first, which takes as long as a small operator.
                y = frozen.forward(x)
            elif isinstance(frozen, PlaneSum):
                y = frozen.with_others(lora.applied(f"layers.{number}.{name}", frozen.first, x), x)
            else:
                return lora.applied(f"layers.{number}.{name}", frozen, x, to_bfloat16=to_bfloat16)
            return y.to(torch.bfloat16) if to_bfloat16 else y

        h, x = rms_norm_beside(h, layer.norms["attn_norm"], eps, keep=keep)
        q = rotated(linear("q", x).view(b, t, a.heads, a.head_size), pass_.cos, pass_.sin, dtype=dtype)
        k = rotated(linear("k", x).view(b, t, a.kv_heads, a.head_size), pass_.cos, pass_.sin, dtype=dtype)
        v = linear("v", x, to_bfloat16=dtype is torch.bfloat16).view(b, t, a.kv_heads, a.head_size)
        if pass_.cache is None and attends(q, k, v):
            x = attention(q, k, v).view(b, t, a.heads * a.head_size)
        else:
            q, k, v = (heads.transpose(1, 2) for heads in (q, k, v))
            if pass_.cache is not None:
                k, v = pass_.cache.extended(number, k, v)
            x = _attention(q, k, v).transpose(1, 2).reshape(b, t, a.heads * a.head_size)
        x = rms_norm(x, layer.norms["attn_sub_norm"], eps, keep=keep) if a.sub_norms else x.float()
        # In place: no operator keeps what a linear gives for the backward pass.
        h = linear("o", x).add_(h)
        h, x = rms_norm_beside(h, layer.norms["ffn_norm"], eps, keep=keep)
        sub_norm = layer.norms.get("ffn_sub_norm")
        if a.gated:
            gate, up = (linear(name, x, to_bfloat16=pass_.rounded) for name in ("gate", "up"))
            x = gated(a.activation, gate, up, sub_norm, eps, keep=keep)
        else:
            up = linear("up", x)
            x = F.relu(up).square() if a.activation == "relu2" else F.silu(up)
            x = x if sub_norm is None else rms_norm(x, sub_norm, eps, keep=keep)
        return linear("down", x).add_(h)

    def _shelved(self, tokens: int) -> int:
        """Elements that one layer rounds to keep them, of ``tokens`` tokens: what goes into its norms."""
        a = self.architecture
        gates = 0 if a.gated else 2 * a.ffn_size
        return tokens * (2 * a.hidden_size + a.heads * a.head_size + gates)

    def _keep(self, tokens: int, keeping: Keeping) -> Keep:
        if not keeping.rounded:
            return as_it_is
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return in_bfloat16
        return Shelf((self.architecture.layers - keeping.recomputed) * self._shelved(tokens)).keep

    def _attention_dtype(self, tokens: int, keeping: Keeping, cache: KeyValueCache | None) -> torch.dtype:
        rounds = keeping.rounded or not torch.is_grad_enabled()
        # A cache gives earlier keys and values in float32.
        rounds = rounds and self._rounds_attention and (cache is None or cache.length == 0)
        return torch.bfloat16 if rounds and tokens >= BFLOAT16_TOKENS else torch.float32

    def _embedded(self, tokens: NDArray[np.int64]) -> Tensor:
        codes, scale = self._embedding
        rows = codes[tokens].astype(np.float32) * scale[tokens][..., None]
        return torch.from_numpy(rows)

    def _rotation(self, start: int, end: int) -> tuple[Tensor, Tensor]:
        if self._rotary[0].shape[0] < end:
            # Doubling keeps the number of rebuilds small while a text grows token by token.
            self._rotary = _rotary_tables(self.architecture, min(2 * end, self.architecture.max_context))
        cos, sin = self._rotary
        return cos[start:end], sin[start:end]

    def _open_layer(self, base: Base, layer: int) -> _Layer:
        prefix, a = f"layers.{layer}.", base.architecture
        planes = {
            name.removeprefix(prefix): base.planes(name)
            for name, _, _ in a.linears()
            if name.startswith(prefix)
        }
        norms = {
            name.removeprefix(prefix): torch.tensor(base.vector(name))
            for name, _ in a.vectors()
            if name.startswith(prefix)
        }
        native = None
        if a.gated:
            sizes = {"heads": a.heads, "kv_heads": a.kv_heads, "head_size": a.head_size}
            native = FrozenLayer(planes, norms, **sizes, activation=a.activation, eps=a.norm_eps)
        return _Layer(
            linears={name: frozen_linear(of_one, backward=self._backward) for name, of_one in planes.items()},
            norms=norms,
            packed=[plane.packed for of_one in planes.values() for plane in of_one],
            native=native,
        )


def _rotary_tables(architecture: Architecture, tokens: int) -> tuple[Tensor, Tensor]:
    half = architecture.head_size // 2
    rates = architecture.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.outer(torch.arange(tokens, dtype=torch.float64), rates)
    return angles.cos().float(), angles.sin().float()


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(e) + causal) v; the last query sees the last key."""
    queries, keys = q.shape[2], k.shape[2]
    grouped = q.shape[1] != k.shape[1]
    if queries == keys:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries) if queries > 1 else None
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
