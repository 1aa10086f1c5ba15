"""Ternary products as torch operators: ``ternary_linear`` and the module around it."""

from typing import Literal

import torch
from torch import Tensor, nn

from sterna_kernels.matrix import TernaryMatrix
from sterna_kernels.products import matmul, matmul_t

Backward = Literal["int8", "int8x2", "fp32"]


def ternary_linear(x: Tensor, w: TernaryMatrix, *, backward: Backward = "int8x2") -> Tensor:
    """y = x W^T with per-row int8 activations; gradients flow to x.

    Shapes: x [..., K], y [..., N], in the dtype of x (float32, or bfloat16, which is converted).

    Args:
        backward: how the gradient of y is held: "int8" one limb, "int8x2" two (15 bits), "fp32" as it is.
    """
    return _TernaryLinear.apply(x, w, backward)  # type: ignore[no-any-return, no-untyped-call]


class TernaryLinear(nn.Module):
    """A frozen ternary linear layer without bias."""

    def __init__(self, matrix: TernaryMatrix, *, backward: Backward = "int8x2") -> None:
        super().__init__()
        self.matrix = matrix
        self.out_features, self.in_features = matrix.shape
        self.backward_as: Backward = backward

    def forward(self, x: Tensor) -> Tensor:
        """y [..., N] of x [..., K]."""
        return ternary_linear(x, self.matrix, backward=self.backward_as)


class _TernaryLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, backward):  # type: ignore[no-untyped-def]
        ctx.w, ctx.how = w, backward
        rows = x.detach().reshape(-1, w.shape[1]).float().contiguous().numpy()
        return torch.from_numpy(matmul(rows, w)).reshape(*x.shape[:-1], w.shape[0]).to(x.dtype)

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        w = ctx.w
        rows = g.detach().reshape(-1, w.shape[0]).float().contiguous()
        if ctx.how == "fp32":
            dx = rows @ torch.from_numpy(w.codes()).float() * w.scale
        else:
            dx = torch.from_numpy(matmul_t(rows.numpy(), w, limbs=1 if ctx.how == "int8" else 2))
        return dx.reshape(*g.shape[:-1], w.shape[1]).to(g.dtype), None, None
