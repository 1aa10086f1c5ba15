"""A layer of a decoder in native calls, without gradients: around its attention, or a lone token in one call.

Rows are normed and quantised on their way into a product, and rotated, gated or added to the hidden state on
their way out: nothing else goes through memory.

Shapes: b sequences of t tokens, d hidden, h heads, kv heads of keys and values, e head size, c tokens that a
cache takes.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, float32

from sterna_kernels import _native
from sterna_kernels.matrix import TernaryMatrix
from sterna_kernels.products import scales_address
from sterna_kernels.torch_rows import Activation

LINEARS: Final = ("q", "k", "v", "o", "gate", "up", "down")
NORMS: Final = ("attn_norm", "attn_sub_norm", "ffn_norm", "ffn_sub_norm")

LowRank = tuple[int, int, int]
"""A linear's part of an adapter: where a [rank, in] and right = scale * b^T [rank, out] lie, and the rank."""

NO_ADAPTER: Final[LowRank] = (0, 0, 0)


class FrozenLayer:
    """The frozen part of a layer: gated, its linears sums of planes.

    Args:
        linears: the planes of each of LINEARS.
        norms: the weights of NORMS, float32; sub-norms may be missing.
    """

    def __init__(
        self,
        linears: Mapping[str, Sequence[TernaryMatrix]],
        norms: Mapping[str, Tensor],
        *,
        heads: int,
        kv_heads: int,
        head_size: int,
        activation: Activation,
        eps: float,
    ) -> None:
        # The native part holds addresses alone.
        self._kept = (linears, norms)
        planes = [[_plane(plane) for plane in linears[name]] for name in LINEARS]
        norms_at = [norms[name].data_ptr() if name in norms else 0 for name in NORMS]
        self._native = _native.layer(heads, kv_heads, head_size, activation, eps, planes, norms_at)
        self._sizes = (heads, kv_heads, head_size)
        self._hidden = linears["down"][0].shape[0]

    def projections(self, h: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Room for what ``project`` makes of hidden states [b, t, d]: q [b, t, h, e], k and v [b, t, kv, e].

        Args:
            dtype: float32 or bfloat16.
        """
        heads, kv_heads, size = self._sizes
        q = h.new_empty((*h.shape[:2], heads, size), dtype=dtype)
        k, v = (h.new_empty((*h.shape[:2], kv_heads, size), dtype=dtype) for _ in range(2))
        return q, k, v

    def project(
        self,
        h: Tensor,
        adapter: Sequence[LowRank],
        *,
        cos: Tensor,
        sin: Tensor,
        to: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        """Write the queries, keys and values of ``h`` [b, t, d] to ``to``, queries and keys rotated.

        Args:
            adapter: for each of LINEARS.
            cos, sin: [t, e/2], of the positions.
            to: as ``projections`` makes them.

        Raises:
            TypeError: a tensor has another type.
            ValueError: one has another shape or is not contiguous.
        """
        heads, kv_heads, size = self._sizes
        b, t = h.shape[:2]
        _check(h, (b, t, self._hidden))
        _check(cos, (t, size // 2))
        _check(sin, (t, size // 2))
        q, k, v = to
        rounded = q.dtype is torch.bfloat16
        for tensor, of_them in ((q, heads), (k, kv_heads), (v, kv_heads)):
            _check(tensor, (b, t, of_them, size), torch.bfloat16 if rounded else float32)
        _native.project(
            self._native,
            adapter,
            h.data_ptr(),
            b * t,
            cos.data_ptr(),
            sin.data_ptr(),
            t,
            rounded,
            q.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
        )

    def complete(self, h: Tensor, adapter: Sequence[LowRank], attention: Tensor) -> None:
        """Take ``h`` [b, t, d] through what follows its ``attention`` [b, t, h, e], in place.

        Where attention is in bfloat16, gated activations are rounded to it too.

        Raises:
            TypeError: ``h`` is not float32, or ``attention`` neither that nor bfloat16.
            ValueError: one has another shape or is not contiguous.
        """
        heads, _, size = self._sizes
        b, t = h.shape[:2]
        _check(h, (b, t, self._hidden))
        rounded = attention.dtype is torch.bfloat16
        _check(attention, (b, t, heads, size), torch.bfloat16 if rounded else float32)
        _native.complete(self._native, adapter, attention.data_ptr(), b * t, rounded, h.data_ptr())

    def pass_token(
        self,
        h: Tensor,
        adapter: Sequence[LowRank],
        *,
        cos: Tensor,
        sin: Tensor,
        keys: Tensor,
        values: Tensor,
        length: int,
    ) -> None:
        """Take ``h`` [d] through the layer in place; its key and value become row ``length`` of the cache.

        Args:
            adapter: for each of LINEARS.
            cos, sin: [e/2], of the token's position.
            keys, values: [kv, c, e], ``length`` rows of each head are there.

        Raises:
            TypeError: a tensor is not float32.
            ValueError: one has another shape or is not contiguous, or the cache is full.
        """
        kv_heads, size = self._sizes[1:]
        capacity = keys.shape[1]
        _check(h, (self._hidden,))
        for angles in (cos, sin):
            _check(angles, (size // 2,))
        for cached in (keys, values):
            _check(cached, (kv_heads, capacity, size))
        _native.pass_token(
            self._native,
            adapter,
            cos.data_ptr(),
            sin.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            capacity,
            length,
            h.data_ptr(),
        )


def put_heads(x: Tensor, room: Tensor, first: int) -> None:
    """Copy ``x`` [b, t, kv, e], float32 or bfloat16, to the rows from ``first`` on of ``room`` [b, kv, c, e].

    Raises:
        TypeError: a tensor has another type.
        ValueError: shapes do not fit, one is not contiguous, or there is no room.
    """
    b, t, kv_heads, size = x.shape
    rounded = x.dtype is torch.bfloat16
    _check(x, (b, t, kv_heads, size), torch.bfloat16 if rounded else float32)
    capacity = room.shape[2]
    _check(room, (b, kv_heads, capacity, size))
    _native.put_heads(x.data_ptr(), rounded, b, t, kv_heads, size, capacity, first, room.data_ptr())


def _check(tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype = float32) -> None:
    if tensor.dtype is not dtype:
        raise TypeError(f"a tensor of {tensor.dtype}, {dtype} is needed")
    if tensor.shape != shape:
        raise ValueError(f"a tensor of shape {tuple(tensor.shape)}, {shape} is needed")
    if not tensor.is_contiguous():
        raise ValueError(f"a tensor of strides {tensor.stride()} is not contiguous")


def _plane(w: TernaryMatrix) -> tuple[int, int, int, float, int, int]:
    return (_native.address(w.packed), *w.shape, w.scale, scales_address(w), w.group_size or 0)
