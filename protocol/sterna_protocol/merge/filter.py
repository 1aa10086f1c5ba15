"""The covariance filter: who pulls the deltas apart along their main direction loses mass, step by step.

After "CAF" (Allouah, Guerraoui, Stephan: Towards Trustworthy Federated Learning with Untrusted Participants,
ICML 2025), in integers. All of it follows from the inner products of the deltas, so that what it costs
beside them does not grow with the model.

Shapes: d deltas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

PRODUCT_BITS: Final = 48
"""Inner products are shortened so that the largest square has so many bits: one of a millionth of its
length still has a square."""

POWER_STEPS: Final = 8
"""Multiplications towards the main direction: one of half its variance is then below 1 %."""

DIRECTION_BITS: Final = 32
"""Components of a direction are shortened to this."""


def filtered(
    products: Sequence[Sequence[int]], masses: Sequence[int], authors: Sequence[bytes], cut: int
) -> list[int]:
    """What is left of ``masses`` where the deltas spread least.

    Args:
        products: inner products of all deltas [d][d], in any unit.
        masses: what each counts at first, above 0.
        authors: decide between two that are equally far.
        cut: how many may be liars: no more is taken away once the masses of twice as many are gone.
    """
    count, whole = len(masses), sum(masses)
    shift = max(0, max(products[i][i] for i in range(count)).bit_length() - PRODUCT_BITS)
    short = [[product >> shift for product in row] for row in products]
    left = list(masses)
    # The smallest spread so far is least / over, and over = 0 stands for more than any.
    best, least, over = left, 1, 0
    while True:
        centred = _centred(short, left)
        shadows, variance, length = _main_direction(centred, left, authors)
        if length <= 0 or variance == 0:
            return left
        length *= sum(left) ** 3
        if over == 0 or variance * over < least * length:
            best, least, over = left, variance, length
        longest = max(shadow * shadow for shadow, mass in zip(shadows, left, strict=True) if mass)
        left = [
            mass * (longest - shadow * shadow) // longest for mass, shadow in zip(left, shadows, strict=True)
        ]
        if count * sum(left) <= (count - 2 * cut) * whole:
            return best


def _centred(products: Sequence[Sequence[int]], masses: Sequence[int]) -> list[list[int]]:
    """Inner products of the differences to the mean, times the square of the sum of ``masses``."""
    whole = sum(masses)
    rows = [sum(map(int.__mul__, row, masses)) for row in products]
    middle = sum(map(int.__mul__, rows, masses))
    return [
        [whole * (whole * product - own - other) + middle for product, other in zip(row, rows, strict=True)]
        for row, own in zip(products, rows, strict=True)
    ]


def _main_direction(
    centred: Sequence[Sequence[int]], masses: Sequence[int], authors: Sequence[bytes]
) -> tuple[list[int], int, int]:
    """The power method from the delta that is farthest from the mean.

    Returns:
        the shadow of each delta on the direction, the sum of their squares by mass, and the square of the
        direction's length.
    """
    counted = [index for index, mass in enumerate(masses) if mass]
    farthest = min(counted, key=lambda index: (-centred[index][index], authors[index]))
    shadows = list(centred[farthest])
    for _ in range(POWER_STEPS):
        excess = max(0, max(abs(shadow) for shadow in shadows).bit_length() - DIRECTION_BITS)
        direction = [mass * (shadow >> excess) for mass, shadow in zip(masses, shadows, strict=True)]
        shadows = [sum(map(int.__mul__, row, direction)) for row in centred]
    variance = sum(mass * shadow * shadow for mass, shadow in zip(masses, shadows, strict=True))
    length = sum(map(int.__mul__, direction, shadows))
    return shadows, variance, length
