"""Ternary products with a product of low rank added on the way: a LoRA correction reads x and y no more.

No function has a gradient of its own: who adds a correction knows more about it (which factors learn, what
must be kept) than the product does. All are operators, so that torch.compile takes them.
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
_BOTH = "(Tensor, Tensor)"
for _schema in (
    f"ternary_linear_thin(Tensor x, {_WEIGHTS}, Tensor a, Tensor right, bool to_bfloat16) -> {_BOTH}",
    f"ternary_linear_backward_thin(Tensor g, {_WEIGHTS}, str backward, Tensor right, Tensor a) -> {_BOTH}",
    "outer(Tensor g, Tensor left, float scale) -> Tensor",
):
    _library.define(_schema, tags=torch.Tag.pt2_compliant_tag)


Weights = tuple[Tensor, int, int, float, Tensor | None, int]
"""A matrix as the operators take it: packed, N, K, scale, scales, columns of a group."""


def weights_of(linear: TernaryLinear) -> Weights:
    """The matrix of a layer."""
    n, k = linear.out_features, linear.in_features
    return linear.packed, n, k, linear.scale, linear.scales, linear.group_size


def product(
    x: Tensor, weights: Weights, a: Tensor, right: Tensor, *, to_bfloat16: bool = False
) -> tuple[Tensor, Tensor]:
    """y = x W^T + (x A^T) right, in float32 or, rounded at the end, in bfloat16; and x A^T, in float32.

    Shapes: x float32 or bfloat16 [..., K], a float32 [R, K], right float32 [R, N]; y [..., N], x A^T
    [..., R].

    Raises:
        TypeError: one of them has another dtype.
        ValueError: one of them has another shape.
    """
    run = _product if torch.compiler.is_compiling() else _product_cpu
    return run(x, *weights, a, right, to_bfloat16)


def product_t(
    g: Tensor, weights: Weights, right: Tensor, a: Tensor, *, backward: str
) -> tuple[Tensor, Tensor]:
    """dx = g W + (g right^T) A, float32 [..., K], and g right^T, float32 [..., R].

    Shapes: g float32 or bfloat16 [..., N], right float32 [R, N], a float32 [R, K]; ``backward`` as in
    ``ternary_linear``.

    Raises:
        TypeError, ValueError: as ``product``.
    """
    run = _product_t if torch.compiler.is_compiling() else _product_t_cpu
    return run(g, *weights, backward, right, a)


def outer(g: Tensor, left: Tensor, scale: float) -> Tensor:
    """scale * g^T left, float32 [N, R]: the gradient of the B in y = ... + scale * left B^T.

    Shapes: g float32 or bfloat16 [..., N], left float32 [..., R].

    Raises:
        TypeError, ValueError: as ``product``.
    """
    return (_outer if torch.compiler.is_compiling() else _outer_cpu)(g, left, scale)


def _product_cpu(
    x: Tensor,
    packed: Tensor,
    n: int,
    k: int,
    scale: float,
    scales: Tensor | None,
    group: int,
    a: Tensor,
    right: Tensor,
    to_bfloat16: bool,
) -> tuple[Tensor, Tensor]:
    _check_factors(x, "x", (a, k), (right, n))
    x, a, right = x.contiguous(), a.contiguous(), right.contiguous()
    y, left = _product_fake(x, packed, n, k, scale, scales, group, a, right, to_bfloat16)
    _native.forward(
        packed.data_ptr(), n, k, scale, _address(scales), group, x.data_ptr(), x.numel() // k, y.data_ptr(),
        left.data_ptr(), right.data_ptr(), right.shape[0], to_bfloat16, x.dtype is torch.bfloat16,
        a.data_ptr(),
    )  # fmt: skip
    return y, left


def _product_t_cpu(
    g: Tensor,
    packed: Tensor,
    n: int,
    k: int,
    scale: float,
    scales: Tensor | None,
    group: int,
    backward: str,
    right: Tensor,
    a: Tensor,
) -> tuple[Tensor, Tensor]:
    _check_factors(g, "g", (right, n), (a, k))
    g, a, right = g.contiguous(), a.contiguous(), right.contiguous()
    if backward == "fp32":
        rows = g.float().reshape(-1, n)
        left = rows @ right.T
        dx = differentiated_fp32(rows, packed, n, k, scale, scales, group or k).addmm_(left, a)
        return dx.reshape((*g.shape[:-1], k)), left.reshape((*g.shape[:-1], -1))
    dx, left = _product_t_fake(g, packed, n, k, scale, scales, group, backward, right, a)
    _native.backward(
        packed.data_ptr(), n, k, scale, _address(scales), group, g.data_ptr(), g.numel() // n,
        1 if backward == "int8" else 2, dx.data_ptr(), left.data_ptr(), a.data_ptr(), a.shape[0], False,
        g.dtype is torch.bfloat16, right.data_ptr(),
    )  # fmt: skip
    return dx, left


def _outer_cpu(g: Tensor, left: Tensor, scale: float) -> Tensor:
    n, rank = g.shape[-1], left.shape[-1]
    if left.shape[:-1] != g.shape[:-1]:
        raise ValueError(f"left has shape {tuple(left.shape)}, g {tuple(g.shape)}")
    _check_dtypes(g, "g", left)
    g, left = g.contiguous(), left.contiguous()
    to = _outer_fake(g, left, scale)
    _native.outer(
        g.data_ptr(),
        g.dtype is torch.bfloat16,
        g.numel() // n,
        n,
        left.data_ptr(),
        rank,
        scale,
        to.data_ptr(),
    )
    return to


def _product_fake(
    x: Tensor,
    packed: Tensor,
    n: int,
    k: int,
    scale: float,
    scales: Tensor | None,
    group: int,
    a: Tensor,
    right: Tensor,
    to_bfloat16: bool,
) -> tuple[Tensor, Tensor]:
    y = x.new_empty((*x.shape[:-1], n), dtype=torch.bfloat16 if to_bfloat16 else torch.float32)
    return y, x.new_empty((*x.shape[:-1], right.shape[0]), dtype=torch.float32)


def _product_t_fake(
    g: Tensor,
    packed: Tensor,
    n: int,
    k: int,
    scale: float,
    scales: Tensor | None,
    group: int,
    backward: str,
    right: Tensor,
    a: Tensor,
) -> tuple[Tensor, Tensor]:
    dx = g.new_empty((*g.shape[:-1], k), dtype=torch.float32)
    return dx, g.new_empty((*g.shape[:-1], a.shape[0]), dtype=torch.float32)


def _outer_fake(g: Tensor, left: Tensor, scale: float) -> Tensor:
    return g.new_empty((g.shape[-1], left.shape[-1]), dtype=torch.float32)


def _check_factors(rows: Tensor, name: str, own: tuple[Tensor, int], other: tuple[Tensor, int]) -> None:
    """``own`` meets the rows, ``other`` makes the result: factors [R, columns] with the columns they need."""
    _check_dtypes(rows, name, own[0], other[0])
    if rows.ndim == 0 or rows.shape[-1] != own[1]:
        raise ValueError(f"{name} has shape {tuple(rows.shape)}, the matrix needs (..., {own[1]})")
    for factor, columns in (own, other):
        if factor.shape != (own[0].shape[0], columns):
            raise ValueError(
                f"a factor has shape {tuple(factor.shape)}, {(own[0].shape[0], columns)} is needed"
            )


def _check_dtypes(rows: Tensor, name: str, *others: Tensor) -> None:
    if rows.dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"{name} must be float32 or bfloat16, not {rows.dtype}")
    if any(other.dtype is not torch.float32 for other in others):
        raise TypeError(f"factors must be float32, not {', '.join(str(other.dtype) for other in others)}")


def _address(scales: Tensor | None) -> int:
    return 0 if scales is None else scales.data_ptr()


_library.impl("ternary_linear_thin", _product_cpu, "CPU")
_library.impl("ternary_linear_backward_thin", _product_t_cpu, "CPU")
_library.impl("outer", _outer_cpu, "CPU")
torch.library.register_fake("sterna::ternary_linear_thin", _product_fake, lib=_library)
torch.library.register_fake("sterna::ternary_linear_backward_thin", _product_t_fake, lib=_library)
torch.library.register_fake("sterna::outer", _outer_fake, lib=_library)
_product: Callable[..., tuple[Tensor, Tensor]] = torch.ops.sterna.ternary_linear_thin.default
_product_t: Callable[..., tuple[Tensor, Tensor]] = torch.ops.sterna.ternary_linear_backward_thin.default
_outer: Callable[..., Tensor] = torch.ops.sterna.outer.default
