"""A sorting network over the rows of a matrix: sorts thousands of short columns at once.

Sorting is exact and its result does not depend on the order of the rows, so that any sort would do; a network
of whole-row minima and maxima is the fast one for few rows and many columns.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray


def sort_columns(values: NDArray[np.signedinteger[Any]]) -> None:
    """Sort each column of ``values`` [rows, columns] in place, the smallest in row 0."""
    low = np.empty_like(values[0])
    for first, second in _comparators(len(values)):
        np.minimum(values[first], values[second], out=low)
        np.maximum(values[first], values[second], out=values[second])
        values[first] = low


@cache
def _comparators(rows: int) -> tuple[tuple[int, int], ...]:
    """Batcher's merge exchange for any number of rows (Knuth, The Art of Computer Programming, 5.2.2 M)."""
    pairs: list[tuple[int, int]] = []
    if rows < 2:
        return ()
    top = 1 << ((rows - 1).bit_length() - 1)
    p = top
    while p:
        q, r, distance = top, 0, p
        while True:
            pairs.extend((i, i + distance) for i in range(rows - distance) if i & p == r)
            if q == p:
                break
            distance, q, r = q - p, q >> 1, p
        p >>= 1
    return tuple(pairs)
