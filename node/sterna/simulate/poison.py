"""Poison: deltas that attack what is learned. Those who send them see every honest delta first, and agree.

Shapes: h honest deltas of n elements. A vector of an attack is what each of the attackers sends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
"""[n]"""

Vectors = NDArray[np.float64]
"""[h, n]"""

Forge = Callable[[Vectors, float], Vector]
"""(what the honest send, strength) -> what each attacker sends."""


def opposite(honest: Vectors, strength: float) -> Vector:
    """The mean of the honest, turned round and lengthened: sign flipping, or with less than 1 the
    inner-product manipulation that hides in the crowd (arXiv:1903.03936)."""
    vector: Vector = -strength * honest.mean(axis=0)
    return vector


def little(honest: Vectors, strength: float) -> Vector:
    """So many standard deviations from the mean in every element that it passes for honest ("a little is
    enough", arXiv:1902.06156)."""
    vector: Vector = honest.mean(axis=0) + strength * honest.std(axis=0, ddof=1)
    return vector


def noise(honest: Vectors, strength: float) -> Vector:
    """Gaussian noise, ``strength`` times as long as an honest delta; the same for the same deltas."""
    words = np.frombuffer(honest[0].tobytes(), np.uint32)
    drawn = np.random.Generator(np.random.PCG64(words.tolist())).standard_normal(honest.shape[1])
    vector: Vector = strength * np.sqrt(np.square(honest).mean()) * drawn
    return vector


def mimicry(honest: Vectors, strength: float) -> Vector:
    """What the first of the honest sends: its text counts so many times (arXiv:2006.09365)."""
    vector: Vector = honest[0].copy()
    return vector


@dataclass(frozen=True, slots=True)
class Poison:
    """How attackers make their deltas.

    Args:
        forge: None: each trains as it should, but on wrong labels.
        adapts: ``strength`` is searched for in each round, against the rule in force.
    """

    forge: Forge | None
    strength: float = 1.0
    adapts: bool = False


POISONS: Final = {
    "sign-flip": Poison(opposite, 5.0),
    "ipm": Poison(opposite, 0.5),
    "alie": Poison(little, 1.5),
    "gaussian": Poison(noise, 10.0),
    "mimic": Poison(mimicry),
    "label-flip": Poison(None),
    "ipm-adaptive": Poison(opposite, adapts=True),
    "alie-adaptive": Poison(little, adapts=True),
}

TRIES: Final = 20
FIRST_STEP: Final = 10.0
SHRINKS: Final = 0.8
"""The search of byzfl's optimal attacks."""


def worst_strength(damage: Callable[[float], float], *, tries: int = TRIES) -> float:
    """The strength, 0 or more, of the most ``damage`` that so many tries find.

    Steps double as long as each does more damage than the one before, and shrink from then on.
    """
    best, most, step, grows = 0.0, damage(0.0), FIRST_STEP, True
    for _ in range(tries - 1):
        found = damage(best + step)
        is_better = found > most
        if is_better:
            best, most = best + step, found
        grows = grows and is_better
        step *= 2 if grows else SHRINKS
    return best


def poisoned(poison: Poison, honest: Sequence[Vector], merged: Callable[[Vector], Vector]) -> Vector:
    """What each attacker sends.

    Args:
        merged: what the rule in force makes of the honest deltas and of this vector from each attacker.

    Raises:
        ValueError: the poison is in the labels, there is nothing to forge.
    """
    if poison.forge is None:
        raise ValueError("wrong labels are trained, not forged")
    vectors, forge = np.stack(honest), poison.forge
    if not poison.adapts:
        return forge(vectors, poison.strength)
    mean = vectors.mean(axis=0)

    def damage(strength: float) -> float:
        return float(np.linalg.norm(merged(forge(vectors, strength)) - mean))

    return forge(vectors, worst_strength(damage))
