"""Lengths and angles of deltas, as exact integers of any size.

A product of two elements takes up to 14 bits for the codes and 48 for the shifts to the unit of the state;
the sum over 2**28 elements would need 90. The codes are therefore multiplied block by block, the blocks
gathered by their shift, and only those few sums are shifted, as Python integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sterna_protocol.merge.adapter import STATE_EXPONENT
from sterna_protocol.merge.codec import MAX_EXPONENT, Delta, block_elements

_SLICE: Final = 32 * 1024
"""Codes widened at once: two deltas of them take 256 KiB as int32, less than an L2 cache; a multiple of every
block."""


def squared_norm(delta: Delta) -> int:
    """The sum of the squares of a delta's elements, in units of 2**-48."""
    return inner_products([delta], [(0, 0)])[0]


def inner_products(deltas: Sequence[Delta], pairs: Sequence[tuple[int, int]]) -> list[int]:
    """For each pair of indices, the sum of the products of the two deltas' elements, in units of 2**-48.

    The deltas are of one charter.
    """
    block, size = block_elements(deltas[0].codec), deltas[0].codes.size
    shifts = [delta.exponents.astype(np.intp) - STATE_EXPONENT for delta in deltas]
    # Shift of both codes together -> sum of their products, for each pair: 127**2 * 2**28 < 2**42.
    by_shift = np.zeros((len(pairs), 2 * (MAX_EXPONENT - STATE_EXPONENT) + 1), np.int64)
    for start in range(0, size, _SLICE):
        stop = min(start + _SLICE, size)
        blocks = slice(start // block, -(-stop // block))
        rows = [_rows(delta.codes[start:stop], block) for delta in deltas]
        for sums, (first, second) in zip(by_shift, pairs, strict=True):
            # 127**2 * 1024 < 2**24 fits the int32 of a block's sum.
            products = np.einsum("bk,bk->b", rows[first], rows[second])
            np.add.at(sums, shifts[first][blocks] + shifts[second][blocks], products)
    return [sum(total << shift for shift, total in enumerate(sums)) for sums in by_shift.tolist()]


def _rows(codes: NDArray[np.int8], block: int) -> NDArray[np.int32]:
    rest = -codes.size % block
    padded = np.pad(codes, (0, rest)) if rest else codes
    return padded.reshape(-1, block).astype(np.int32)
