"""One token through a layer of a decoder in one native call; no gradients.

Shapes: d hidden, h heads, kv heads of keys and values, e head size, c tokens that a cache takes.
"""

from collections.abc import Mapping, Sequence
from typing import Final

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


class TokenLayer:
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
        self._native = _native.token_layer(heads, kv_heads, head_size, activation, eps, planes, norms_at)

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
            ValueError: one is not contiguous, or the cache is full.
        """
        for tensor in (h, cos, sin, keys, values):
            if tensor.dtype is not float32:
                raise TypeError(f"a token's tensors are float32, not {tensor.dtype}")
            if not tensor.is_contiguous():
                raise ValueError(f"a tensor of strides {tensor.stride()} is not contiguous")
        _native.pass_token(
            self._native,
            adapter,
            cos.data_ptr(),
            sin.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            keys.shape[1],
            length,
            h.data_ptr(),
        )


def _plane(w: TernaryMatrix) -> tuple[int, int, int, float, int, int]:
    return (_native.address(w.packed), *w.shape, w.scale, scales_address(w), w.group_size or 0)
