"""Muon for the linears' matrices: momentum with orthogonalised steps, one batched product per shape."""

from __future__ import annotations

import torch
from torch import Tensor

# Quintic Newton-Schulz coefficients, one triple a step (Polar Express, arXiv:2505.16932, table 1);
# four steps bring the singular values close enough to one for an update direction.
COEFFICIENTS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
)


class Muon:
    """Momentum with steps orthogonalised per matrix (Jordan et al. 2024) and decoupled weight decay."""

    def __init__(self, matrices: list[torch.nn.Parameter], *, momentum: float = 0.95) -> None:
        groups: dict[tuple[int, int], list[torch.nn.Parameter]] = {}
        for matrix in matrices:
            groups.setdefault((matrix.shape[0], matrix.shape[1]), []).append(matrix)
        self.groups = list(groups.values())
        self.momentum = momentum
        self.buffers = [torch.zeros(len(group), *group[0].shape) for group in self.groups]

    @torch.no_grad()
    def step(self, *, rate: float, decay: float) -> None:
        for group, buffer in zip(self.groups, self.buffers, strict=True):
            gradient = torch.stack([matrix.grad for matrix in group])
            buffer.lerp_(gradient, 1 - self.momentum)
            update = orthogonalised(gradient.lerp_(buffer, self.momentum))
            rows, columns = group[0].shape
            size = rate * max(1.0, rows / columns) ** 0.5
            for matrix, change in zip(group, update.float().unbind(0), strict=True):
                matrix.mul_(1 - rate * decay).add_(change, alpha=-size)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Each of [n, rows, columns] with its singular values pushed towards one, in bfloat16."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-7)).bfloat16()
    for a, b, c in COEFFICIENTS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
