"""Rounds of several peers trained side by side: one pass through the base for all, each with a B of its own.

A step of one peer over a small base is mostly the cost of calling operators, and A and the base are the same
for everybody. Shapes: p peers, s tokens of one of them in a batch, n values of a subspace; r, R, i, o as in
``lora.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sterna.errors import WorkerFailed
from sterna.train.batches import IGNORED, Batch
from sterna.train.lora import drawn_a
from sterna.train.loss import Head, cross_entropy
from sterna.train.model import Decoder
from sterna.train.step import MAX_GRADIENT_NORM, AdamW, rate_at
from sterna_kernels.torch import TernaryLinear
from sterna_protocol.merge.scheme import Part, delta_parts, delta_size, subspace_of
from sterna_protocol.swarm.charter import AdapterScheme, Recipe


def train_side_by_side(
    decoder: Decoder,
    head: Head,
    scheme: AdapterScheme,
    state: NDArray[np.float32],
    batches: Sequence[Iterator[Batch]],
    recipe: Recipe,
    *,
    round_: int,
) -> NDArray[np.float32]:
    """The trained values of each peer [p, n]: what ``train_on`` makes of its batches, up to rounding.

    Args:
        scheme: ``fixed`` or ``cycle``, where all have the same A.
        state: the adapter that all start from, float32 [subspaces, n].
        batches: of each peer; all have the same shape.

    Raises:
        WorkerFailed: the training diverged.
        ValueError: A is trained.
    """
    if scheme.scheme == "pair":
        raise ValueError("peers that train A cannot share it")
    lora = _ManyLoras(scheme, state, subspace_of(scheme, round_), len(batches))
    optimiser = AdamW(lora.values)
    for step in range(recipe.steps):
        parts = [next(peer) for peer in batches]
        inputs = np.concatenate([part.inputs for part in parts])
        targets = np.concatenate([part.targets for part in parts])
        counted = torch.tensor([[int((part.targets != IGNORED).sum())] for part in parts])
        lora.gradient.zero_()
        loss = cross_entropy(decoder.hidden(inputs, lora=lora), targets, head)
        if not torch.isfinite(loss):
            raise WorkerFailed(f"the loss is {loss.item()} at step {step + 1}: the learning rate is too high")
        loss.backward()  # type: ignore[no-untyped-call]
        # A peer's loss is the mean of its own tokens, and its gradient is clipped by its own length.
        lora.gradient.div_(counted)
        lengths = torch.linalg.vector_norm(lora.gradient, dim=1, keepdim=True)
        lora.gradient.mul_((MAX_GRADIENT_NORM / lengths.clamp_(min=1e-30)).clamp_(max=1.0))
        optimiser.step(lora.gradient, rate=rate_at(recipe, step))
        lora.values_changed()
    trained: NDArray[np.float32] = lora.values.numpy()
    return trained


@dataclass(frozen=True, slots=True)
class _Factors:
    """One adapted linear. a [R, i] and b [p, o, R] with the trained subspace first; value and gradient
    [p, o, r] are views of the vectors of all linears."""

    a: Tensor
    b: Tensor
    value: Tensor
    gradient: Tensor


class _ManyLoras:
    """The adapters of p peers, who differ in the subspace that trains; values and gradient [p, n]."""

    def __init__(self, scheme: AdapterScheme, state: NDArray[np.float32], trained: int, peers: int) -> None:
        self._scale = float(scheme.scale)
        self.values = torch.from_numpy(np.repeat(state[trained][None], peers, axis=0))
        self.gradient = torch.zeros(peers, delta_size(scheme))
        used = [trained, *(row for row in range(scheme.subspaces) if row != trained and state[row].any())]
        self._factors = {
            part.name: self._linear(scheme, part, state, used, peers) for part in delta_parts(scheme)
        }
        # What the gradient of B flows through: autograd follows outputs that some input asks for.
        self._asks = torch.zeros((), requires_grad=True)

    def applied(self, name: str, linear: TernaryLinear, x: Tensor, *, to_bfloat16: bool = False) -> Tensor:
        """y [p q, t, o] of the linear ``name`` at ``x`` [p q, t, i]: q sequences of each peer in turn."""
        y = linear.forward(x)
        corrected: Tensor = _Correction.apply(y, x, self._asks, self._factors[name], self._scale)  # type: ignore[no-untyped-call]
        return corrected.to(torch.bfloat16) if to_bfloat16 else corrected

    def low_ranks(self, layer: int) -> None:
        """None: these factors train."""

    def values_changed(self) -> None:
        """Take over new ``values``."""
        for factors in self._factors.values():
            factors.b[..., : factors.value.shape[2]] = factors.value

    def _linear(
        self, scheme: AdapterScheme, part: Part, state: NDArray[np.float32], used: Sequence[int], peers: int
    ) -> _Factors:
        place, shape = slice(part.offset, part.stop), (peers, *part.shape)
        one = np.concatenate([state[row, place].reshape(part.shape) for row in used], axis=1)
        return _Factors(
            a=torch.from_numpy(np.concatenate([drawn_a(scheme, row, part.name) for row in used])),
            b=torch.from_numpy(np.repeat(one[None], peers, axis=0)),
            value=self.values[:, place].view(shape),
            gradient=self.gradient[:, place].view(shape),
        )


class _Correction(torch.autograd.Function):
    """y + scale * (x A^T) B^T for each peer; of B only the first columns learn."""

    @staticmethod
    def forward(ctx, y, x, asks, factors, scale):  # type: ignore[no-untyped-def]
        peers, _, rank = factors.value.shape
        inner = (x.reshape(-1, x.shape[-1]) @ factors.a.T).view(peers, -1, factors.a.shape[0])
        ctx.save_for_backward(inner[..., :rank].clone())
        ctx.factors, ctx.scale = factors, scale
        y.view(peers, -1, y.shape[-1]).baddbmm_(inner, factors.b.mT, alpha=scale)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        (inner,) = ctx.saved_tensors
        factors = ctx.factors
        rows = g.reshape(inner.shape[0], -1, g.shape[-1])
        factors.gradient.baddbmm_(rows.mT, inner, alpha=ctx.scale)
        dx = None
        if ctx.needs_input_grad[1]:
            back = (rows @ factors.b).view(-1, factors.a.shape[0]) @ factors.a
            dx = back.mul_(ctx.scale).view(*g.shape[:-1], factors.a.shape[1])
        return g, dx, None, None, None
