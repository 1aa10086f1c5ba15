"""The merge rules on floats, for deltas of equal weight: what byzfl can be asked about.

Shapes: vectors [d, n]; d deltas of n elements.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sterna_protocol.merge.filter import POWER_STEPS

Vector = NDArray[np.float64]
Vectors = NDArray[np.float64]

Direction = Callable[[Vectors, Vector], tuple[Vector, float]]
"""(differences to the mean, masses) -> a unit vector along which they spread most, and how much they do."""


def mean(vectors: Vectors) -> Vector:
    return vectors.mean(axis=0)


def trimmed(vectors: Vectors, cut: int) -> Vector:
    ordered = np.sort(vectors, axis=0)
    return ordered[cut : len(vectors) - cut].mean(axis=0)


def median(vectors: Vectors) -> Vector:
    return trimmed(vectors, (len(vectors) - 1) // 2)


def clipped(vectors: Vectors) -> Vectors:
    """No vector longer than the lower median length."""
    lengths = np.linalg.norm(vectors, axis=1)
    limit = np.sort(lengths)[(len(vectors) - 1) // 2]
    return vectors * np.minimum(1.0, limit / np.maximum(lengths, 1e-300))[:, None]


def mixed(vectors: Vectors, cut: int) -> Vectors:
    """Each vector as the mean of its d - cut nearest, itself included."""
    distances = np.square(vectors[:, None] - vectors[None]).sum(axis=2)
    near = np.argsort(distances, axis=1, kind="stable")[:, : len(vectors) - cut]
    return vectors[near].mean(axis=1)


def filtered(vectors: Vectors, cut: int, direction: Direction, *, forgets: bool = True) -> Vector:
    """The covariance filter with a way to find the main direction.

    Args:
        forgets: whether the longest shadow is looked for among those with mass left. byzfl looks at all, and
            need not come to an end where one without mass has the longest.
    """
    count = len(vectors)
    masses, least, best = np.ones(count), np.inf, mean(vectors)
    while masses.sum() > count - 2 * cut:
        middle = (masses[:, None] * vectors).sum(axis=0) / masses.sum()
        differences = vectors - middle
        along, spread = direction(differences, masses)
        if spread < least:
            least, best = spread, middle
        squares = (differences @ along) ** 2
        longest = squares[masses > 0].max() if forgets else squares.max()
        if longest == 0:
            return middle
        masses = masses * np.maximum(0, 1 - squares / longest)
    return best


def from_the_farthest(differences: Vectors, masses: Vector) -> tuple[Vector, float]:
    """The power method as ``sterna_protocol.merge.filter`` does it."""
    lengths = np.where(masses > 0, np.square(differences).sum(axis=1), -1)
    along = differences[lengths.argmax()]
    for _ in range(POWER_STEPS):
        along = (masses * (differences @ along)) @ differences
        along /= np.linalg.norm(along)
    return along, float((masses * (differences @ along) ** 2).sum() / masses.sum())
