"""The adapter inside the model: every adapted linear gets y += scale * (x A^T) B^T.

Shapes: o out, i in features of a linear; r rank of one subspace; R = r x the subspaces in use; n values of
one subspace's state (sterna_protocol.merge.scheme lays them out).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sterna_kernels.torch import TernaryLinear
from sterna_kernels.torch_layer import LINEARS, NO_ADAPTER, LowRank
from sterna_kernels.torch_thin import outer, product, product_t, weights_of
from sterna_protocol.merge.adapter import STATE_EXPONENT, Adapter
from sterna_protocol.merge.scheme import Part, a_exponent, a_signs, delta_parts, delta_size, subspace_of
from sterna_protocol.swarm.charter import AdapterScheme

FrozenA = Callable[[AdapterScheme, int, str], NDArray[np.float32]]
"""The frozen A [r, i] of a subspace of a linear."""


@dataclass(frozen=True, slots=True)
class _Factors:
    """One adapted linear. The trained subspace stands first in A and B; ``trained_*`` are what learns.

    ``b`` shares the memory of ``trained_b`` where no other subspace is in use; else it ``copies`` it. Where
    nothing trains, there is ``right`` instead: scale * B^T, as the product takes it.

    Shapes: a [R, i], b [o, R], right [R, o], trained_a [r, i], trained_b [o, r].
    """

    a: Tensor
    b: Tensor | None
    right: Tensor | None
    trained_a: nn.Parameter | None
    trained_b: nn.Parameter | None
    copies: bool


class Lora:
    """An adapter's factors, and the values of the one subspace that trains as one flat vector.

    Attributes:
        values: float32 [n], the trained subspace; parameters of the model are views of it.
        gradient: float32 [n], filled by ``backward``; None where nothing trains.
    """

    def __init__(
        self,
        scheme: AdapterScheme,
        state: NDArray[np.float32],
        *,
        trained: int | None,
        frozen_a: FrozenA | None = None,
    ) -> None:
        """
        Args:
            state: float32 [subspaces, n].
            trained: the subspace to train; None for an adapter that is only used.
            frozen_a: gives what ``drawn_a`` gives, where an experiment wants another.
        """
        expected = (scheme.subspaces, delta_size(scheme))
        if state.shape != expected:
            raise ValueError(f"state of shape {state.shape}, the scheme has {expected}")
        self._scale = float(scheme.scale)
        self._frozen_a = frozen_a or drawn_a
        self.gradient: Tensor | None = None
        self.values = torch.zeros(0)
        used = [row for row in range(scheme.subspaces) if row != trained and state[row].any()]
        if trained is not None:
            used.insert(0, trained)
            self.values = torch.tensor(state[trained])
            self.gradient = torch.zeros_like(self.values)
        self._factors: dict[str, _Factors] = {}
        by_name: dict[str, dict[str, Part]] = {}
        for part in delta_parts(scheme):
            by_name.setdefault(part.name, {})[part.matrix] = part
        if used:
            for name, parts in by_name.items():
                self._factors[name] = self._linear(scheme, name, parts, state, used, trained is not None)

    def applied(self, name: str, linear: TernaryLinear, x: Tensor, *, to_bfloat16: bool = False) -> Tensor:
        """y [.., o] of the linear ``name`` at ``x`` [.., i], with this adapter's part added.

        ``to_bfloat16``: round it at the end.
        """
        found = self._factors.get(name)
        if found is None:
            y = linear.forward(x)
        elif found.trained_a is not None and found.trained_b is not None:
            inner = nn.functional.linear(x, found.trained_a)
            y = linear.forward(x) + self._scale * nn.functional.linear(inner, found.trained_b)
        elif found.trained_b is not None:
            corrected: Tensor = _Corrected.apply(  # type: ignore[no-untyped-call]
                x,
                found.trained_b,
                found.a,
                found.b,
                self._scale,
                to_bfloat16,
                linear.backward_as,
                *weights_of(linear),
            )
            return corrected
        else:
            assert found.right is not None  # for mypy: nothing trains
            if not (torch.is_grad_enabled() and x.requires_grad):
                y, _ = product(x, weights_of(linear), found.a, found.right, to_bfloat16=to_bfloat16)
                return y
            y = linear.forward(x) + nn.functional.linear(x, found.a) @ found.right
        return y.to(torch.bfloat16) if to_bfloat16 else y

    def low_ranks(self, layer: int) -> list[LowRank] | None:
        """The factors of a layer, as a layer takes them without gradients; None while they train."""
        if self.gradient is not None:
            return None
        return [self._low_rank(f"layers.{layer}.{name}") for name in LINEARS]

    def values_changed(self) -> None:
        """Take over new ``values``: called after each optimiser step."""
        for factors in self._factors.values():
            if factors.copies and factors.trained_b is not None and factors.b is not None:
                factors.b[:, : factors.trained_b.shape[1]] = factors.trained_b.detach()

    def _linear(
        self,
        scheme: AdapterScheme,
        name: str,
        parts: dict[str, Part],
        state: NDArray[np.float32],
        used: Sequence[int],
        trains: bool,
    ) -> _Factors:
        b_parts = [_matrix(state[row], parts["b"]) for row in used]
        if "a" in parts:
            a_parts = [_matrix(state[row], parts["a"]) for row in used]
        else:
            a_parts = [self._frozen_a(scheme, row, name) for row in used]
        trained_a = self._parameter(parts["a"]) if trains and "a" in parts else None
        trained_b = self._parameter(parts["b"]) if trains else None
        alone = len(used) == 1
        if alone and trained_b is not None:
            b = trained_b.detach()
        else:
            b = torch.tensor(np.concatenate(b_parts, axis=1))
        return _Factors(
            a=torch.tensor(np.concatenate(a_parts)),
            b=b if trains else None,
            right=None if trains else self._scale * b.T.contiguous(),
            trained_a=trained_a,
            trained_b=trained_b,
            copies=trains and not alone and trained_a is None,
        )

    def _low_rank(self, name: str) -> LowRank:
        found = self._factors.get(name)
        if found is None or found.right is None:
            return NO_ADAPTER
        return found.a.data_ptr(), found.right.data_ptr(), found.a.shape[0]

    def _parameter(self, part: Part) -> nn.Parameter:
        """A view of ``values`` whose gradient is the same view of ``gradient``: one step moves all."""
        rows, columns = part.shape
        place = slice(part.offset, part.offset + rows * columns)
        parameter = nn.Parameter(self.values[place].view(rows, columns))
        assert self.gradient is not None  # for mypy: set before any parameter is made
        parameter.grad = self.gradient[place].view(rows, columns)
        return parameter


def float_state(adapter: Adapter) -> NDArray[np.float32]:
    """The adapter's integers as numbers, float32 [subspaces, n]."""
    return np.ldexp(adapter.state.astype(np.float64), STATE_EXPONENT).astype(np.float32)


def drawn_a(scheme: AdapterScheme, subspace: int, name: str) -> NDArray[np.float32]:
    """The frozen A [r, i] of one linear, as the charter's seed draws it."""
    signs = a_signs(scheme, subspace, name)
    return np.ldexp(signs.astype(np.float32), a_exponent(signs.shape[1])).astype(np.float32)


def lora_of_round(
    scheme: AdapterScheme, state: NDArray[np.float32], round_: int, *, frozen_a: FrozenA | None = None
) -> Lora:
    """The adapter as round ``round_`` trains it."""
    return Lora(scheme, state, trained=subspace_of(scheme, round_), frozen_a=frozen_a)


def _matrix(row: NDArray[np.float32], part: Part) -> NDArray[np.float32]:
    rows, columns = part.shape
    return row[part.offset : part.offset + rows * columns].reshape(rows, columns)


class _Corrected(torch.autograd.Function):
    """x W^T + scale * (x A^T) B^T in one pass, where only the first columns of B learn.

    Of the activations it keeps x A'^T alone, r numbers a token: dB needs no more and dx only needs A and B.
    """

    @staticmethod
    def forward(ctx, x, trained_b, a, b, scale, to_bfloat16, backward, *weights):  # type: ignore[no-untyped-def]
        right = scale * b.T.contiguous()
        y, inner = product(x, weights, a, right, to_bfloat16=to_bfloat16)
        ctx.save_for_backward(inner[..., : trained_b.shape[1]].clone(), a, right)
        ctx.scale, ctx.backward_as, ctx.weights = scale, backward, weights
        return y

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        inner, a, right = ctx.saved_tensors
        dx = db = None
        if ctx.needs_input_grad[0]:
            dx, _ = product_t(g, ctx.weights, right, a, backward=ctx.backward_as)
        if ctx.needs_input_grad[1]:
            db = outer(g, inner, ctx.scale)
        return dx, db, *(None,) * (len(ctx.needs_input_grad) - 2)
