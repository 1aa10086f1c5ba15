"""The decoder over a base file: BitNet's arithmetic, an adapter on its linears, and a cache for decoding.

    RMSNorm -> q, k, v -> rotary (half-rotation) -> grouped-query attention -> sub-norm -> o
    RMSNorm -> act(gate) * up -> sub-norm -> down

(arXiv:2402.17764, arXiv:2504.12285.) Shapes: b sequences, t tokens, d hidden, h heads, e head size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sterna.train.base import Architecture, Base
from sterna_kernels import TernaryMatrix
from sterna_kernels.torch import Backward, ternary_linear


class Correction(Protocol):
    """What the decoder asks of an adapter."""

    def correct(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        """``y`` of the linear ``name`` at ``x``, corrected."""


class KeyValueCache:
    """Keys and values of the tokens read so far, for one decoding run.

    Attributes:
        length: tokens held.
    """

    def __init__(self, architecture: Architecture, *, sequences: int, tokens: int) -> None:
        shape = (architecture.layers, sequences, architecture.kv_heads, tokens, architecture.head_size)
        self.keys = torch.zeros(shape)
        self.values = torch.zeros(shape)
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
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


@dataclass(frozen=True, slots=True)
class _Layer:
    linears: Mapping[str, TernaryMatrix]
    norms: Mapping[str, Tensor]


class Decoder:
    """The frozen base, ready to run. Its matrices stay in the mapped file; norms and angles are copied."""

    def __init__(self, base: Base, *, backward: Backward) -> None:
        self.architecture = base.architecture
        self._embedding = base.embedding
        self._backward = backward
        self._layers = [self._open_layer(base, layer) for layer in range(base.architecture.layers)]
        self._final_norm = torch.tensor(base.vector("final_norm"))
        self._rotary = _rotary_tables(base.architecture, 0)

    def hidden(
        self,
        tokens: NDArray[np.int64],
        *,
        lora: Correction | None = None,
        cache: KeyValueCache | None = None,
        checkpointed: int = 0,
    ) -> Tensor:
        """The final, normed hidden states [b, t, d] of tokens [b, t].

        Args:
            cache: tokens follow those it holds, and are added to it.
            checkpointed: so many of the first layers keep only their input for the backward pass.

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
        for number in range(len(self._layers)):
            if number < checkpointed and torch.is_grad_enabled():
                h = checkpoint(
                    self._layer,
                    number,
                    h,
                    cos,
                    sin,
                    lora,
                    None,
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
            else:
                h = self._layer(number, h, cos, sin, lora, cache)
        if cache is not None:
            cache.length = end
        return self._normed(h, self._final_norm)

    def activation_bytes(self, tokens: int) -> int:
        """About what one layer keeps for the backward pass of ``tokens`` tokens without checkpointing."""
        a = self.architecture
        attention, kv = a.heads * a.head_size, a.kv_heads * a.head_size
        # Norms keep their inputs; attention its q, k, v, output; the feed-forward gate, up and their product.
        kept = 2 * a.hidden_size + 3 * attention + 2 * kv + 4 * a.ffn_size
        return 4 * tokens * kept

    def _layer(
        self,
        number: int,
        h: Tensor,
        cos: Tensor,
        sin: Tensor,
        lora: Correction | None,
        cache: KeyValueCache | None,
    ) -> Tensor:
        layer = self._layers[number]
        a = self.architecture
        b, t, _ = h.shape

        def linear(name: str, x: Tensor) -> Tensor:
            y = ternary_linear(x, layer.linears[name], backward=self._backward)
            return y if lora is None else lora.correct(f"layers.{number}.{name}", x, y)

        x = self._normed(h, layer.norms["attn_norm"])
        q = rotated(linear("q", x).view(b, t, a.heads, a.head_size), cos, sin).transpose(1, 2)
        k = rotated(linear("k", x).view(b, t, a.kv_heads, a.head_size), cos, sin).transpose(1, 2)
        v = linear("v", x).view(b, t, a.kv_heads, a.head_size).transpose(1, 2)
        if cache is not None:
            k, v = cache.extended(number, k, v)
        x = _attention(q, k, v).transpose(1, 2).reshape(b, t, a.heads * a.head_size)
        if a.sub_norms:
            x = self._normed(x, layer.norms["attn_sub_norm"])
        h = h + linear("o", x)
        x = self._normed(h, layer.norms["ffn_norm"])
        x = self._activated(linear("gate", x) if a.gated else None, linear("up", x))
        if a.sub_norms:
            x = self._normed(x, layer.norms["ffn_sub_norm"])
        return h + linear("down", x)

    def _activated(self, gate: Tensor | None, up: Tensor) -> Tensor:
        inner = up if gate is None else gate
        if self.architecture.activation == "relu2":
            if gate is not None:
                gated: Tensor = _GatedRelu2.apply(gate, up)  # type: ignore[no-untyped-call]
                return gated
            return F.relu(inner).square()
        active = F.silu(inner)
        return active if gate is None else active * up

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        normed: Tensor = _RmsNorm.apply(x, weight, self.architecture.norm_eps)  # type: ignore[no-untyped-call]
        return normed

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

    @staticmethod
    def _open_layer(base: Base, layer: int) -> _Layer:
        prefix = f"layers.{layer}."
        return _Layer(
            linears={
                name.removeprefix(prefix): base.matrix(name)
                for name, _, _ in base.architecture.linears()
                if name.startswith(prefix)
            },
            norms={
                name.removeprefix(prefix): torch.tensor(base.vector(name))
                for name, _ in base.architecture.vectors()
                if name.startswith(prefix)
            },
        )


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [b, t, h, e] turned by the angles of its positions; cos, sin [t, 1, e/2]."""
    turned: Tensor = _Rotation.apply(x, cos, sin)  # type: ignore[no-untyped-call]
    return turned


def _rotary_tables(architecture: Architecture, tokens: int) -> tuple[Tensor, Tensor]:
    half = architecture.head_size // 2
    rates = architecture.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.outer(torch.arange(tokens, dtype=torch.float64), rates)[:, None, :]
    return angles.cos().float(), angles.sin().float()


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(e) + causal) v; the last query sees the last key."""
    queries, keys = q.shape[2], k.shape[2]
    grouped = q.shape[1] != k.shape[1]
    if queries == keys:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries) if queries > 1 else None
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)


class _RmsNorm(torch.autograd.Function):
    """y = w x / sqrt(mean(x^2) + eps); the weight is frozen. Keeps x and one number a row."""

    @staticmethod
    def forward(ctx, x, weight, eps):  # type: ignore[no-untyped-def]
        inverse = (
            torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        )
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        x, weight, inverse = ctx.saved_tensors
        gw = g * weight
        along = (gw * x).mean(-1, keepdim=True).mul_(inverse.square())
        return gw.addcmul_(x, along, value=-1).mul_(inverse), None, None


class _GatedRelu2(torch.autograd.Function):
    """relu(gate)^2 * up, keeping the two inputs alone."""

    @staticmethod
    def forward(ctx, gate, up):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(gate, up)
        return F.relu(gate).square_().mul_(up)

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        gate, up = ctx.saved_tensors
        positive = F.relu(gate)
        d_up = positive.square().mul_(g)
        return positive.mul_(up).mul_(g).mul_(2), d_up


class _Rotation(torch.autograd.Function):
    """Half-rotation: (x1 cos - x2 sin, x2 cos + x1 sin); its gradient turns back."""

    @staticmethod
    def forward(ctx, x, cos, sin):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        cos, sin = ctx.saved_tensors
        return _turned(g, cos, -sin), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    turned = torch.empty(x.shape, dtype=x.dtype)
    low, high = turned.chunk(2, -1)
    torch.mul(first, cos, out=low).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=high).addcmul_(first, sin)
    return turned
