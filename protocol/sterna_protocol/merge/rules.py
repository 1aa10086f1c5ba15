"""From a slate of deltas to the next adapter, in integers: every peer gets the same bits.

A delta is a vector of the whole adapter: it is zero outside the subspace that its round trained. The rules
work on these vectors, so that a delta from an earlier round, which belongs to another subspace, is one
opinion among all of them there too.

Shapes: n elements of a delta, d deltas of the slate, s elements of a slice.

Bit budget of an int64 (63 bits and a sign)::

    code                            7 bits    127
    shift to the unit of the state 24 bits    exponents are -24..0            code << shift < 2**31
    staleness weight                8 bits    256 at most
    clip factor                    16 bits    65536 at most
    sum over the slate              6 bits    64 deltas at most
    ---------------------------------------
    mean, clip+mean, clip+filter   61 bits    doubled once for the rounding: 62
    trimmed, median                45 bits    without clip factor; times 64 deltas: 51, doubled: 52
    nnm+trimmed                    51 bits    sums of up to 64 such sums; times 64: 57, doubled: 58
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sterna_protocol.errors import LocalProtocolError
from sterna_protocol.merge import adapter as adapters
from sterna_protocol.merge import codec as codecs
from sterna_protocol.merge.adapter import STATE_EXPONENT, STATE_LIMIT, Adapter
from sterna_protocol.merge.branches import mean_of
from sterna_protocol.merge.codec import Delta, block_elements
from sterna_protocol.merge.filter import filtered
from sterna_protocol.merge.geometry import inner_products, squared_norm
from sterna_protocol.merge.network import sort_columns
from sterna_protocol.merge.scheme import delta_size, subspace_of
from sterna_protocol.swarm.charter import Charter
from sterna_protocol.swarm.roll import OPEN, Branches
from sterna_protocol.wire.limits import MAX_SLATE
from sterna_protocol.wire.messages import SlateEntry

STALENESS_WEIGHTS: Final = (256, 181, 148)
"""256 / sqrt(1 + s), rounded, for a delta that is s rounds late (FedBuff, arXiv:2106.06639)."""

CLIP_ONE: Final = 1 << 16
"""The clip factor 1."""

MASS_ONE: Final = 1 << 8
"""What one part of a staleness weight is divided into where the covariance filter takes some of it away."""

_SLICE: Final = 16 * 1024
"""Elements merged at once: 16 deltas of them take 1 MiB as int32, about one L2 cache. A multiple of every
block, so that a slice starts where a block starts."""


def merge(
    charter: Charter,
    previous: Adapter,
    deltas: Sequence[tuple[SlateEntry, Delta]],
    round_: int,
    branches: Branches = (),
) -> Adapter:
    """The adapter after ``round_``, whose slate is ``deltas`` in any order; an empty slate changes nothing.

    ``branches``: the branch of each author that is not one of its own (``Roll.branches``). Definitions are
    in docs/spec/merge.md.

    Raises:
        LocalProtocolError: a delta or ``previous`` does not fit the charter, a delta is too old or from a
            later round, an author has two, or there are too many.
    """
    adapters.require_fits(charter, previous)
    if len(deltas) > MAX_SLATE:
        raise LocalProtocolError(f"slate of {len(deltas)} deltas, the limit is {MAX_SLATE}")
    votes = [_vote(charter, entry, delta, round_) for entry, delta in deltas]
    if len({vote.author for vote in votes}) != len(votes):
        raise LocalProtocolError("slate with two deltas of one author")
    votes = _one_a_branch(charter, votes, dict(branches))
    if not votes:
        return previous
    combine = _RULES[charter.merge.rule](charter, votes)
    state = previous.state.copy()
    for subspace in sorted({vote.subspace for vote in votes}):
        for start in range(0, delta_size(charter.adapter), _SLICE):
            piece = state[subspace, start : start + _SLICE]
            change = combine(subspace, start, start + piece.size)
            # |piece| < 2**31 and |change| < 2**31, so that the sum fits before it saturates.
            piece[:] = np.clip(piece + change, -STATE_LIMIT, STATE_LIMIT)
    return Adapter(state)


@dataclass(frozen=True, slots=True)
class _Vote:
    """One delta, its subspace and its staleness weight."""

    author: bytes
    delta: Delta
    subspace: int
    weight: int


_Combine = Callable[[int, int, int], NDArray[np.int64]]
"""(subspace, start, stop) -> the rounded change of these elements, int64 [stop - start]."""


def _vote(charter: Charter, entry: SlateEntry, delta: Delta, round_: int) -> _Vote:
    staleness = round_ - entry.trained_round
    if not 0 <= staleness <= charter.limits.max_staleness:
        raise LocalProtocolError(
            f"delta of round {entry.trained_round} in round {round_}, "
            f"at most {charter.limits.max_staleness} rounds late are allowed"
        )
    codecs.require_fits(charter, delta)
    return _Vote(
        author=entry.author,
        delta=delta,
        subspace=subspace_of(charter.adapter, entry.trained_round),
        weight=STALENESS_WEIGHTS[staleness],
    )


def _one_a_branch(charter: Charter, votes: Sequence[_Vote], branches: Mapping[bytes, bytes]) -> list[_Vote]:
    """One vote for each branch: the mean of its newest deltas. That of the strangers weighs at most the
    charter's share of what all votes weigh, if there are others."""
    groups: dict[bytes, list[_Vote]] = {}
    for vote in sorted(votes, key=lambda vote: vote.author):
        groups.setdefault(branches.get(vote.author, vote.author), []).append(vote)
    merged: dict[bytes, _Vote] = {}
    for branch, group in groups.items():
        newest = max(vote.weight for vote in group)
        kept = [vote for vote in group if vote.weight == newest]
        merged[branch] = kept[0]
        if len(kept) > 1:
            merged[branch] = replace(kept[0], delta=mean_of([vote.delta for vote in kept]))
    strangers = merged.pop(OPEN, None)
    found = list(merged.values())
    if strangers is not None:
        percent = charter.admission.open_percent
        most = percent * sum(vote.weight for vote in found) // (100 - percent) if found else strangers.weight
        # One percent of the smallest weight is still more than 1.
        found.append(replace(strangers, weight=min(strangers.weight, most)))
    return found


def _mean(charter: Charter, votes: Sequence[_Vote]) -> _Combine:
    return _weighted_mean(votes, [CLIP_ONE] * len(votes))


def _clipped_mean(charter: Charter, votes: Sequence[_Vote]) -> _Combine:
    """Every delta longer than the median is scaled down to it; the median is the lower one of two."""
    return _weighted_mean(votes, _clip_factors([squared_norm(vote.delta) for vote in votes]))


def _clip_factors(squares: Sequence[int]) -> list[int]:
    median = sorted(squares)[(len(squares) - 1) // 2]
    return [CLIP_ONE if square <= median else math.isqrt((median << 32) // square) for square in squares]


def _weighted_mean(votes: Sequence[_Vote], factors: Sequence[int]) -> _Combine:
    """sum(weight * factor * value) / sum(weight * CLIP_ONE); the lower sum goes over the whole slate."""
    shares = [vote.weight * factor for vote, factor in zip(votes, factors, strict=True)]
    return _weighted_sum(votes, shares, CLIP_ONE * sum(vote.weight for vote in votes))


def _weighted_sum(votes: Sequence[_Vote], shares: Sequence[int], divisor: int) -> _Combine:
    """sum(share * value) / divisor."""

    def combine(subspace: int, start: int, stop: int) -> NDArray[np.int64]:
        total = np.zeros(stop - start, np.int64)
        for vote, share in zip(votes, shares, strict=True):
            if vote.subspace == subspace and share:
                total += _scaled(vote.delta, start, stop, share)
        return _divide(total, divisor)

    return combine


def _trimmed(charter: Charter, votes: Sequence[_Vote]) -> _Combine:
    """Of the weighted values of each element the ``cut`` lowest and highest are dropped.

    With nothing to cut this is the mean: sum(kept) * d / ((d - 2 cut) * sum(weight)).
    """
    return _trimmed_mean(votes, _cut(charter, votes))


def _median(charter: Charter, votes: Sequence[_Vote]) -> _Combine:
    """All but the middle one or two of the weighted values are dropped."""
    return _trimmed_mean(votes, (len(votes) - 1) // 2)


def _trimmed_mean(votes: Sequence[_Vote], cut: int) -> _Combine:
    count = len(votes)
    weights = _reduced_weights(votes)
    # Equal weights cancel out; the values then fit int32, whose comparisons cost half.
    dtype = np.int32 if set(weights) == {1} else np.int64
    divisor = (count - 2 * cut) * sum(weights)

    def combine(subspace: int, start: int, stop: int) -> NDArray[np.int64]:
        values = _weighted(votes, weights, subspace, start, stop, dtype)
        sort_columns(values)
        return _divide(count * values[cut : count - cut].sum(axis=0, dtype=np.int64), divisor)

    return combine


def _mixed_trimmed(charter: Charter, votes: Sequence[_Vote]) -> _Combine:
    """Each delta is replaced by the sum of the d - cut weighted deltas nearest to it, itself included; then
    as ``trimmed`` (nearest-neighbour mixing, arXiv:2302.01772)."""
    count = len(votes)
    cut = _cut(charter, votes)
    weights = _reduced_weights(votes)
    far = _farthest(votes, weights, cut)
    divisor = (count - 2 * cut) * (count - cut) * sum(weights)

    def combine(subspace: int, start: int, stop: int) -> NDArray[np.int64]:
        values = _weighted(votes, weights, subspace, start, stop, np.int64)
        # Fewer deltas are far than near: what is near is the total without them.
        mixed = np.empty_like(values)
        mixed[:] = values.sum(axis=0)
        for row, strangers in zip(mixed, far, strict=True):
            for stranger in strangers:
                row -= values[stranger]
        sort_columns(mixed)
        return _divide(count * mixed[cut : count - cut].sum(axis=0), divisor)

    return combine


def _clipped_filtered(charter: Charter, votes: Sequence[_Vote]) -> _Combine:
    """The mean of what the covariance filter leaves of each delta, clipped as in ``clip+mean``."""
    products = _products(votes)
    factors = _clip_factors([products[i][i] for i in range(len(votes))])
    clipped = [
        [own * other * product for other, product in zip(factors, row, strict=True)]
        for own, row in zip(factors, products, strict=True)
    ]
    masses = filtered(
        clipped,
        [vote.weight * MASS_ONE for vote in votes],
        [vote.author for vote in votes],
        _cut(charter, votes),
    )
    # A mass has 16 bits and a factor has 16: together they must fit the 24 that the mean has for both.
    shares = [mass * factor // MASS_ONE for mass, factor in zip(masses, factors, strict=True)]
    return _weighted_sum(votes, shares, CLIP_ONE // MASS_ONE * sum(masses))


def _products(votes: Sequence[_Vote]) -> list[list[int]]:
    """The exact inner products of all deltas [d][d] as vectors of the whole adapter, without weights."""
    pairs = [
        (i, j)
        for i, j in itertools.combinations_with_replacement(range(len(votes)), 2)
        if votes[i].subspace == votes[j].subspace
    ]
    products = [[0] * len(votes) for _ in votes]
    for (i, j), product in zip(pairs, inner_products([vote.delta for vote in votes], pairs), strict=True):
        products[i][j] = products[j][i] = product
    return products


def _farthest(votes: Sequence[_Vote], weights: Sequence[int], cut: int) -> list[list[int]]:
    """For each vote the ``cut`` others whose weighted deltas are farthest from its own; of two that are
    equally far, the one with the larger author."""
    products = _products(votes)

    def distance(i: int, j: int) -> int:
        squares = weights[i] ** 2 * products[i][i] + weights[j] ** 2 * products[j][j]
        return squares - 2 * weights[i] * weights[j] * products[i][j]

    farthest = []
    for i in range(len(votes)):
        others = [j for j in range(len(votes)) if j != i]
        others.sort(key=lambda j: (distance(i, j), votes[j].author))
        farthest.append(others[len(others) - cut :])
    return farthest


_RULES: Final[dict[str, Callable[[Charter, Sequence[_Vote]], _Combine]]] = {
    "mean": _mean,
    "clip+mean": _clipped_mean,
    "trimmed": _trimmed,
    "median": _median,
    "nnm+trimmed": _mixed_trimmed,
    "clip+filter": _clipped_filtered,
}


def _cut(charter: Charter, votes: Sequence[_Vote]) -> int:
    return len(votes) * charter.merge.trim_percent // 100


def _reduced_weights(votes: Sequence[_Vote]) -> list[int]:
    """The weights, or ones where all are equal: only their ratios count."""
    equal = len({vote.weight for vote in votes}) == 1
    return [1 if equal else vote.weight for vote in votes]


def _weighted(
    votes: Sequence[_Vote],
    weights: Sequence[int],
    subspace: int,
    start: int,
    stop: int,
    dtype: type[np.int32] | type[np.int64],
) -> NDArray[np.signedinteger[Any]]:
    """The weighted elements of a slice [d, s]: 0 where a delta is of another subspace."""
    values: NDArray[np.signedinteger[Any]] = np.zeros((len(votes), stop - start), dtype)
    for row, vote, weight in zip(values, votes, weights, strict=True):
        if vote.subspace == subspace:
            row[:] = _scaled(vote.delta, start, stop, weight)
    return values


def _scaled(delta: Delta, start: int, stop: int, factor: int) -> NDArray[np.int64]:
    """``factor`` times the elements of a slice in units of 2**-24: int64 [stop - start]."""
    block = block_elements(delta.codec)
    exponents = delta.exponents[start // block : -(-stop // block)].astype(np.int64)
    steps = np.int64(factor) << (exponents - STATE_EXPONENT)
    return np.multiply(delta.codes[start:stop], np.repeat(steps, block)[: stop - start], dtype=np.int64)


def _divide(total: NDArray[np.int64], divisor: int) -> NDArray[np.int64]:
    """``total / divisor`` to nearest, halves away from zero."""
    quotient: NDArray[np.int64] = np.sign(total) * ((2 * np.abs(total) + divisor) // (2 * divisor))
    return quotient
