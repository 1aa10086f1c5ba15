"""Ternary products as torch operators: ``ternary_linear`` and the module around it.

The operators take the packed bytes as a uint8 tensor that shares the memory of the TernaryMatrix, so that
torch.compile sees tensors and numbers only.
"""

import ctypes
from collections.abc import Callable
from typing import Any, Final, Literal, get_args
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sterna_kernels import _native
from sterna_kernels.matrix import TernaryMatrix
from sterna_kernels.products import unpack_rows

Backward = Literal["int8", "int8x2", "fp32"]

DEFAULT_BACKWARD: Final[Backward] = "int8"
"""The fastest whose loss curves cannot be told from those of fp32 (docs/experiments/backward.md)."""

# Made once for each matrix that is alive, because making one takes longer than a product of a small matrix.
_shared: WeakKeyDictionary[TernaryMatrix, Tensor] = WeakKeyDictionary()

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Rows of W that the fp32 backward holds in float32 at once: 14 MB at K = 6912.
_FP32_ROWS = 512


def ternary_linear(x: Tensor, w: TernaryMatrix, *, backward: Backward = DEFAULT_BACKWARD) -> Tensor:
    """y = x W^T with per-row int8 activations; gradients flow to x, as if nothing had been rounded.

    Shapes: x [..., K], y [..., N], in the dtype of x (float32 or bfloat16; float16 is converted).

    Args:
        backward: how the gradient of y is held: "int8" one limb, rounded by chance, "int8x2" two (15 bits),
            rounded to nearest, "fp32" as it is.

    Raises:
        TypeError: ``x`` has another dtype.
        ValueError: ``x`` does not end in K, or there is no such ``backward``.
    """
    n, k = w.shape
    return _apply(x, share(w), n, k, w.scale, _scales(w), w.group_size or 0, _check(backward))


class TernaryLinear(nn.Module):
    """A frozen ternary linear layer without bias, on the memory of its matrix.

    Shapes: x [..., K], y [..., N]. It has no parameters and no state to save: the weights are the base's.

    Args:
        backward: as in ``ternary_linear``.
    """

    packed: Tensor

    def __init__(self, matrix: TernaryMatrix, *, backward: Backward = DEFAULT_BACKWARD) -> None:
        super().__init__()
        self.register_buffer("packed", share(matrix), persistent=False)
        self.out_features, self.in_features = matrix.shape
        self.scale = matrix.scale
        # Not a buffer, which a cast of the module to bfloat16 would round.
        self.scales = _scales(matrix)
        self.group_size = matrix.group_size or 0
        self.backward_as = _check(backward)

    def forward(self, x: Tensor) -> Tensor:
        """y [..., N] of x [..., K]."""
        n, k = self.out_features, self.in_features
        return _apply(x, self.packed, n, k, self.scale, self.scales, self.group_size, self.backward_as)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, backward={self.backward_as}"
        )


def share(w: TernaryMatrix) -> Tensor:
    """The packed bytes as a tensor on the same memory, which nobody may write to: it may be a mapped file."""
    tensor = _shared.get(w)
    if tensor is None:
        tensor = _shared[w] = share_array(w.packed)
    return tensor


def share_array(array: NDArray[Any]) -> Tensor:
    """A C-contiguous array as a tensor on its memory, which nobody may write to: it may be a mapped file."""
    # torch has no read-only tensors and warns where one would be needed: it gets the plain memory, which
    # holds on to its owner.
    memory = (ctypes.c_uint8 * array.nbytes).from_address(array.ctypes.data)
    memory.owner = array  # type: ignore[attr-defined]  # ctypes objects take any attribute
    plain = torch.frombuffer(memory, dtype=torch.uint8)
    return plain.view(getattr(torch, array.dtype.name)).view(array.shape)


def _scales(w: TernaryMatrix) -> Tensor | None:
    """The scales of the rows, [N], or of the groups, [N, G]."""
    scales = w.row_scales if w.group_scales is None else w.group_scales
    return None if scales is None else share_array(scales)


def _apply(
    x: Tensor, packed: Tensor, n: int, k: int, scale: float, scales: Tensor | None, group: int, backward: str
) -> Tensor:
    # The dispatcher takes 9 us to find that nobody wants a gradient; 210 layers for each token feel that.
    plain = type(x) is Tensor and x.is_cpu and packed.is_cpu and not torch.compiler.is_compiling()
    if plain and not (torch.is_grad_enabled() and x.requires_grad):
        return _forward_cpu(x, packed, n, k, scale, scales, group, backward)
    return _linear(x, packed, n, k, scale, scales, group, backward)


# --- the operators: sterna::ternary_linear and its backward ---

# torch has no types for this class.
_library: Any = torch.library.Library("sterna", "DEF")  # type: ignore[no-untyped-call]
_WEIGHTS = "Tensor packed, int n, int k, float scale, Tensor? scales, int group"
for _name, _rows in (("ternary_linear", "x"), ("ternary_linear_backward", "g")):
    _schema = f"{_name}(Tensor {_rows}, {_WEIGHTS}, str backward) -> Tensor"
    _library.define(_schema, tags=torch.Tag.pt2_compliant_tag)


def _forward_cpu(
    x: Tensor, packed: Tensor, n: int, k: int, scale: float, scales: Tensor | None, group: int, backward: str
) -> Tensor:
    _check_rows(x, "x", k)
    rows, is_narrow = _readable(x)
    y = rows.new_empty((*x.shape[:-1], n))
    at, count = 0 if scales is None else scales.data_ptr(), rows.numel() // k
    weights = (packed.data_ptr(), n, k, scale, at, group)
    _native.forward(*weights, rows.data_ptr(), count, y.data_ptr(), 0, 0, 0, is_narrow, is_narrow)
    return y if y.dtype is x.dtype else y.to(x.dtype)


def _backward_cpu(
    g: Tensor, packed: Tensor, n: int, k: int, scale: float, scales: Tensor | None, group: int, backward: str
) -> Tensor:
    _check_rows(g, "g", n)
    if backward == "fp32":
        rows = g.float().reshape(-1, n)
        dx = differentiated_fp32(rows, packed, n, k, scale, scales, group or k).reshape((*g.shape[:-1], k))
    else:
        rows, is_narrow = _readable(g)
        dx = rows.new_empty((*g.shape[:-1], k))
        count, limbs = rows.numel() // n, 1 if backward == "int8" else 2
        at = 0 if scales is None else scales.data_ptr()
        weights = (packed.data_ptr(), n, k, scale, at, group)
        _native.backward(
            *weights, rows.data_ptr(), count, limbs, dx.data_ptr(), 0, 0, 0, is_narrow, is_narrow
        )
    return dx if dx.dtype is g.dtype else dx.to(g.dtype)


def _readable(x: Tensor) -> tuple[Tensor, bool]:
    """Contiguous rows as the kernels read them, and whether they are in bfloat16."""
    is_narrow = x.dtype is torch.bfloat16
    return (x if is_narrow else x.float()).contiguous(), is_narrow


def differentiated_fp32(
    g: Tensor, packed: Tensor, n: int, k: int, scale: float, scales: Tensor | None, group: int
) -> Tensor:
    scaled = g * float(np.float32(scale))
    dx = g.new_zeros((g.shape[0], k))
    for first in range(0, n, _FP32_ROWS):
        rows = min(_FP32_ROWS, n - first)
        weights = torch.from_numpy(unpack_rows(packed.data_ptr(), (n, k), first, rows)).float()
        if scales is not None:
            each = scales[first : first + rows].reshape(rows, -1)
            weights *= each if group >= k else each.repeat_interleave(group, 1)[:, :k]
        dx.addmm_(scaled[:, first : first + rows], weights)
    return dx


def _forward_fake(
    x: Tensor, packed: Tensor, n: int, k: int, scale: float, scales: Tensor | None, group: int, backward: str
) -> Tensor:
    _check_rows(x, "x", k)
    return x.new_empty((*x.shape[:-1], n))


def _backward_fake(
    g: Tensor, packed: Tensor, n: int, k: int, scale: float, scales: Tensor | None, group: int, backward: str
) -> Tensor:
    return g.new_empty((*g.shape[:-1], k))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, packed, ctx.n, ctx.k, ctx.scale, scales, ctx.group, ctx.backward_as = inputs
    ctx.save_for_backward(packed, scales)


def _differentiate(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    packed, scales = ctx.saved_tensors
    dx = _linear_backward(g, packed, ctx.n, ctx.k, ctx.scale, scales, ctx.group, ctx.backward_as)
    return dx, None, None, None, None, None, None, None


def _check_rows(x: Tensor, name: str, width: int) -> None:
    if x.dtype not in _DTYPES:
        raise TypeError(f"{name} must be float32, bfloat16 or float16, not {x.dtype}")
    if x.ndim == 0 or x.shape[-1] != width:
        raise ValueError(f"{name} has shape {tuple(x.shape)}, the matrix needs (..., {width})")


def _check(backward: str) -> str:
    if backward not in get_args(Backward):
        raise ValueError(f"backward={backward!r}: choose one of {', '.join(get_args(Backward))}")
    return backward


_library.impl("ternary_linear", _forward_cpu, "CPU")
_library.impl("ternary_linear_backward", _backward_cpu, "CPU")
torch.library.register_fake("sterna::ternary_linear", _forward_fake, lib=_library)
torch.library.register_fake("sterna::ternary_linear_backward", _backward_fake, lib=_library)
torch.library.register_autograd(
    "sterna::ternary_linear", _differentiate, setup_context=_remember, lib=_library
)
_linear: Callable[..., Tensor] = torch.ops.sterna.ternary_linear.default
_linear_backward: Callable[..., Tensor] = torch.ops.sterna.ternary_linear_backward.default
