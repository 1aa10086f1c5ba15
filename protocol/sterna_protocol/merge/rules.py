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
    mean, clip+mean                61 bits    doubled once for the rounding: 62
    trimmed (no clip factor)       45 bits    times 64 deltas: 51, doubled: 52
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sterna_protocol.errors import LocalProtocolError
from sterna_protocol.merge import adapter as adapters
from sterna_protocol.merge import codec as codecs
from sterna_protocol.merge.adapter import STATE_EXPONENT, STATE_LIMIT, Adapter
from sterna_protocol.merge.codec import Delta, block_elements
from sterna_protocol.merge.network import sort_columns
from sterna_protocol.merge.scheme import delta_size, subspace_of
from sterna_protocol.swarm.charter import Charter
from sterna_protocol.wire.limits import MAX_SLATE
from sterna_protocol.wire.messages import SlateEntry

STALENESS_WEIGHTS: Final = (256, 181, 148)
"""256 / sqrt(1 + s), rounded, for a delta that is s rounds late (FedBuff, arXiv:2106.06639)."""

CLIP_ONE: Final = 1 << 16
"""The clip factor 1."""

_SLICE: Final = 16 * 1024
"""Elements merged at once: 16 deltas of them take 1 MiB as int32, about one L2 cache. A multiple of every
block, so that a slice starts where a block starts."""


def merge(
    charter: Charter, previous: Adapter, deltas: Sequence[tuple[SlateEntry, Delta]], round_: int
) -> Adapter:
    """The adapter after ``round_``, whose slate is ``deltas`` in any order; an empty slate changes nothing.

    The definitions are in docs/spec/merge.md.

    Raises:
        LocalProtocolError: a delta or ``previous`` does not fit the charter, a delta is too old or from a
            later round, or there are too many.
    """
    adapters.require_fits(charter, previous)
    if len(deltas) > MAX_SLATE:
        raise LocalProtocolError(f"slate of {len(deltas)} deltas, the limit is {MAX_SLATE}")
    votes = [_vote(charter, entry, delta, round_) for entry, delta in deltas]
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
    return _Vote(delta, subspace_of(charter.adapter, entry.trained_round), STALENESS_WEIGHTS[staleness])


def _mean(charter: Charter, votes: Sequence[_Vote]) -> _Combine:
    return _weighted_mean(votes, [CLIP_ONE] * len(votes))


def _clipped_mean(charter: Charter, votes: Sequence[_Vote]) -> _Combine:
    """Every delta longer than the median is scaled down to it; the median is the lower one of two."""
    squares = [squared_norm(vote.delta) for vote in votes]
    median = sorted(squares)[(len(squares) - 1) // 2]
    factors = [CLIP_ONE if square <= median else math.isqrt((median << 32) // square) for square in squares]
    return _weighted_mean(votes, factors)


def _weighted_mean(votes: Sequence[_Vote], factors: Sequence[int]) -> _Combine:
    """sum(weight * factor * value) / sum(weight * CLIP_ONE); the lower sum goes over the whole slate."""
    divisor = CLIP_ONE * sum(vote.weight for vote in votes)

    def combine(subspace: int, start: int, stop: int) -> NDArray[np.int64]:
        total = np.zeros(stop - start, np.int64)
        for vote, factor in zip(votes, factors, strict=True):
            if vote.subspace == subspace:
                total += _scaled(vote.delta, start, stop, vote.weight * factor)
        return _divide(total, divisor)

    return combine


def _trimmed(charter: Charter, votes: Sequence[_Vote]) -> _Combine:
    """Of the weighted values of each element the ``cut`` lowest and highest are dropped.

    With nothing to cut this is the mean: sum(kept) * d / ((d - 2 cut) * sum(weight)).
    """
    count = len(votes)
    cut = count * charter.merge.trim_percent // 100
    # Equal weights cancel out; the values then fit int32, whose comparisons cost half.
    equal = len({vote.weight for vote in votes}) == 1
    weights = [1 if equal else vote.weight for vote in votes]
    dtype = np.int32 if equal else np.int64
    divisor = (count - 2 * cut) * sum(weights)

    def combine(subspace: int, start: int, stop: int) -> NDArray[np.int64]:
        values = np.zeros((count, stop - start), dtype)
        for row, vote, weight in zip(values, votes, weights, strict=True):
            if vote.subspace == subspace:
                row[:] = _scaled(vote.delta, start, stop, weight)
        sort_columns(values)
        return _divide(count * values[cut : count - cut].sum(axis=0, dtype=np.int64), divisor)

    return combine


_RULES: Final[dict[str, Callable[[Charter, Sequence[_Vote]], _Combine]]] = {
    "mean": _mean,
    "clip+mean": _clipped_mean,
    "trimmed": _trimmed,
}


def squared_norm(delta: Delta) -> int:
    """The exact sum of the squares of a delta's elements, in units of 2**-48."""
    block = block_elements(delta.codec)
    total = 0
    # Blocks are gathered by exponent: 127**2 * n < 2**14 * 2**28 fits an int64, the shift by up to 48 bits
    # only a Python int.
    by_exponent = np.zeros(codecs.MAX_EXPONENT - codecs.MIN_EXPONENT + 1, np.int64)
    step = _SLICE
    for start in range(0, delta.codes.size, step):
        codes = delta.codes[start : start + step].astype(np.int32)
        exponents = delta.exponents[start // block : (start + step) // block]
        sums = np.add.reduceat(codes * codes, np.arange(0, codes.size, block), dtype=np.int64)
        np.add.at(by_exponent, exponents.astype(np.intp) - codecs.MIN_EXPONENT, sums)
    for above, squares in enumerate(by_exponent.tolist()):
        total += squares << (2 * (codecs.MIN_EXPONENT - STATE_EXPONENT + above))
    return total


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
