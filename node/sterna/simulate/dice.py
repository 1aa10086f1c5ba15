"""Dice: all that differs between two runs, drawn from their seeds alike on every machine.

Only ``random.Random.random`` is used, whose sequence Python promises to keep, and no function of the C
library, whose last bits differ.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

EXPONENTIAL = (
    0.0, 0.065, 0.134, 0.208, 0.288, 0.375, 0.470, 0.575, 0.693,
    0.827, 0.981, 1.163, 1.386, 1.674, 2.079, 2.773, 5.0,
)  # fmt: skip
"""Quantiles of the exponential distribution of mean 1 at 0/16, 1/16, ..., cut at 5."""


class Dice:
    """Draws for one ``purpose``, so that more draws for one leave the others as they are."""

    def __init__(self, seed: int, purpose: str) -> None:
        digest = hashlib.sha256(f"{purpose}/{seed}".encode()).digest()
        self._draw = random.Random(int.from_bytes(digest[:8], "big")).random

    def chance(self, share: float) -> bool:
        return self._draw() < share

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self._draw()

    def below(self, count: int) -> int:
        return int(self._draw() * count)

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self._draw() * len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        left = list(items)
        for end in range(len(left) - 1, 0, -1):
            other = self.below(end + 1)
            left[end], left[other] = left[other], left[end]
        return left

    def around(self, mean: float) -> float:
        """Exponentially distributed, in straight pieces: short mostly, five times ``mean`` at most."""
        place = self._draw() * 16
        index = int(place)
        low = EXPONENTIAL[index]
        return mean * (low + (EXPONENTIAL[index + 1] - low) * (place - index))
