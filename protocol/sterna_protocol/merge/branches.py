"""One vote a branch: the deltas of one branch become one before any rule sees them, in integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sterna_protocol.merge.adapter import STATE_EXPONENT
from sterna_protocol.merge.codec import MAX_EXPONENT, Delta, block_elements

MAX_CODE: Final = 127
"""Codes of a mean take all of an int8, whatever the codec: it never travels."""

_BLOCKS: Final = 64
"""Blocks computed at once: 64 of 1,024 elements take 512 KiB as int64."""


def mean_of(deltas: Sequence[Delta]) -> Delta:
    """The mean of ``deltas`` of one charter, to the nearest that int8 codes hold in each block.

    A block's exponent is the smallest with which no code is over 127; halves are rounded away from zero.
    Sums of 64 deltas take 31 + 6 bits, doubled once for the rounding.
    """
    first = deltas[0]
    block, size, count = block_elements(first.codec), first.codes.size, len(deltas)
    codes = np.empty(size, np.int8)
    exponents = np.empty(first.exponents.size, np.int8)
    for at in range(0, exponents.size, _BLOCKS):
        start, stop = at * block, min((at + _BLOCKS) * block, size)
        total = np.zeros((-(-(stop - start) // block), block), np.int64)
        for delta in deltas:
            rows = np.zeros(total.size, np.int64)
            rows[: stop - start] = delta.codes[start:stop]
            shifts = delta.exponents[at : at + _BLOCKS].astype(np.int64) - STATE_EXPONENT
            total += rows.reshape(total.shape) << shifts[:, None]
        shift = _smallest_shifts(np.abs(total).max(axis=1), count)
        quotients = _divide(total, count << shift[:, None])
        codes[start:stop] = quotients.reshape(-1)[: stop - start]
        exponents[at : at + _BLOCKS] = shift + STATE_EXPONENT
    return Delta(codes, exponents, first.codec)


def _smallest_shifts(largest: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    shift = np.zeros(largest.size, np.int64)
    for _ in range(MAX_EXPONENT - STATE_EXPONENT):
        shift += _divide(largest, count << shift) > MAX_CODE
    return shift


def _divide(total: NDArray[np.int64], divisor: NDArray[np.int64]) -> NDArray[np.int64]:
    quotient: NDArray[np.int64] = np.sign(total) * ((2 * np.abs(total) + divisor) // (2 * divisor))
    return quotient
