"""A linear of the base: one ternary product, or the sum of its planes' products."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from sterna_kernels import TernaryMatrix
from sterna_kernels.torch import Backward, TernaryLinear


class PlaneSum(nn.Module):
    """A frozen linear without bias whose weights are a sum of ternary matrices: y = x W_0^T + x W_1^T + ...

    Every product quantises the same rows to the same int8 codes, so that the sum is the product with the sum
    of the weights; and so are the gradients, of one int8 limb too where planes have one scale each.

    Shapes: x [..., in], y [..., out].
    """

    def __init__(self, planes: Sequence[TernaryMatrix], *, backward: Backward) -> None:
        super().__init__()
        first, *others = (TernaryLinear(plane, backward=backward) for plane in planes)
        self.first = first
        self.others = nn.ModuleList(others)

    def forward(self, x: Tensor) -> Tensor:
        """y of x, added up in the order of the planes."""
        return self.with_others(self.first.forward(x), x)

    def with_others(self, y: Tensor, x: Tensor) -> Tensor:
        """``y``, to which the products of all planes but the first are added."""
        for plane in self.others:
            # In place: no operator keeps its result for the backward pass.
            y += plane.forward(x)
        return y


def frozen_linear(planes: Sequence[TernaryMatrix], *, backward: Backward) -> TernaryLinear | PlaneSum:
    """The layer of these planes; one alone has nothing to add up."""
    if len(planes) == 1:
        return TernaryLinear(planes[0], backward=backward)
    return PlaneSum(planes, backward=backward)
