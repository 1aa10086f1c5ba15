"""Ternary products with a product of low rank added on the way: a LoRA correction reads and writes y no more.

Neither function has a gradient of its own: who adds a correction knows more about it (which factors learn,
what must be kept) than the product does. Both are operators, so that torch.compile takes them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sterna_kernels import _native
from sterna_kernels.torch import TernaryLinear, differentiated_fp32

# torch has no types for this class.
_library: Any = torch.library.Library("sterna", "FRAGMENT")  # type: ignore[no-untyped-call]
_WEIGHTS = "Tensor packed, int n, int k, float scale, Tensor? scales, int group"
for _schema in (
    f"ternary_linear_thin(Tensor x, {_WEIGHTS}, Tensor left, Tensor right, bool to_bfloat16) -> Tensor",
    f"ternary_linear_backward_thin(Tensor g, {_WEIGHTS}, str backward, Tensor left, Tensor right) -> Tensor",
):
    _library.define(_schema, tags=torch.Tag.pt2_compliant_tag)


Weights = tuple[Tensor, int, int, float, Tensor | None, int]
"""A matrix as the operators take it: packed, N, K, scale, scales, columns of a group."""


def weights_of(linear: TernaryLinear) -> Weights:
    """The matrix of a layer."""
    n, k = linear.out_features, linear.in_features
    return linear.packed, n, k, linear.scale, linear.scales, linear.group_size


def product(x: Tensor, weights: Weights, left: Tensor, right: Tensor, *, to_bfloat16: bool = False) -> Tensor:
    """x W^T + left right, in float32 or, rounded at the end, in bfloat16.

    Shapes: x float32 [..., K], left float32 [..., R], right float32 [R, N], the result [..., N].

    Raises:
        TypeError: one of them is not float32.
        ValueError: one of them has another shape.
    """
    run = _product if torch.compiler.is_compiling() else _product_cpu
    return run(x, *weights, left, right, to_bfloat16)


def product_t(g: Tensor, weights: Weights, left: Tensor, right: Tensor, *, backward: str) -> Tensor:
    """g W + left right, float32 [..., K]; ``backward`` as in ``ternary_linear``.

    Shapes: g float32 [..., N], left float32 [..., R], right float32 [R, K].

    Raises:
        TypeError, ValueError: as ``product``.
    """
    run = _product_t if torch.compiler.is_compiling() else _product_t_cpu
    return run(g, *weights, backward, left, right)


def _product_cpu(
    x: Tensor,
    packed: Tensor,
    n: int,
    k: int,
    scale: float,
    scales: Tensor | None,
    group: int,
    left: Tensor,
    right: Tensor,
    to_bfloat16: bool,
) -> Tensor:
    x, left, right = _checked(x, k, left, right, n)
    y = x.new_empty((*x.shape[:-1], n), dtype=torch.bfloat16 if to_bfloat16 else torch.float32)
    _native.forward(
        packed.data_ptr(), n, k, scale, _address(scales), group, x.data_ptr(), x.numel() // k, y.data_ptr(),
        left.data_ptr(), right.data_ptr(), right.shape[0], to_bfloat16,
    )  # fmt: skip
    return y


def _product_t_cpu(
    g: Tensor,
    packed: Tensor,
    n: int,
    k: int,
    scale: float,
    scales: Tensor | None,
    group: int,
    backward: str,
    left: Tensor,
    right: Tensor,
) -> Tensor:
    g, left, right = _checked(g, n, left, right, k)
    if backward == "fp32":
        dx = differentiated_fp32(g.reshape(-1, n), packed, n, k, scale, scales, group or k)
        return dx.addmm_(left.reshape(-1, left.shape[-1]), right).reshape((*g.shape[:-1], k))
    dx = g.new_empty((*g.shape[:-1], k))
    _native.backward(
        packed.data_ptr(), n, k, scale, _address(scales), group, g.data_ptr(), g.numel() // n,
        1 if backward == "int8" else 2, dx.data_ptr(), left.data_ptr(), right.data_ptr(), right.shape[0],
    )  # fmt: skip
    return dx


def _product_fake(
    x: Tensor,
    packed: Tensor,
    n: int,
    k: int,
    scale: float,
    scales: Tensor | None,
    group: int,
    left: Tensor,
    right: Tensor,
    to_bfloat16: bool,
) -> Tensor:
    _checked(x, k, left, right, n)
    return x.new_empty((*x.shape[:-1], n), dtype=torch.bfloat16 if to_bfloat16 else torch.float32)


def _product_t_fake(
    g: Tensor,
    packed: Tensor,
    n: int,
    k: int,
    scale: float,
    scales: Tensor | None,
    group: int,
    backward: str,
    left: Tensor,
    right: Tensor,
) -> Tensor:
    _checked(g, n, left, right, k)
    return g.new_empty((*g.shape[:-1], k))


def _checked(
    x: Tensor, width: int, left: Tensor, right: Tensor, columns: int
) -> tuple[Tensor, Tensor, Tensor]:
    """All three, contiguous."""
    rank = right.shape[0] if right.ndim == 2 else -1
    for name, rows, shape in (
        ("x", x, (*x.shape[:-1], width)),
        ("left", left, (*x.shape[:-1], rank)),
        ("right", right, (rank, columns)),
    ):
        if rows.dtype is not torch.float32:
            raise TypeError(f"{name} must be float32, not {rows.dtype}")
        if rows.shape != shape:
            raise ValueError(f"{name} has shape {tuple(rows.shape)}, expected {shape}")
    return x.contiguous(), left.contiguous(), right.contiguous()


def _address(scales: Tensor | None) -> int:
    return 0 if scales is None else scales.data_ptr()


_library.impl("ternary_linear_thin", _product_cpu, "CPU")
_library.impl("ternary_linear_backward_thin", _product_t_cpu, "CPU")
torch.library.register_fake("sterna::ternary_linear_thin", _product_fake, lib=_library)
torch.library.register_fake("sterna::ternary_linear_backward_thin", _product_t_fake, lib=_library)
_product: Callable[..., Tensor] = torch.ops.sterna.ternary_linear_thin.default
_product_t: Callable[..., Tensor] = torch.ops.sterna.ternary_linear_backward_thin.default
