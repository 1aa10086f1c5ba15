"""The links of the virtual network: delays, losses, duplicates and cuts, until they are healed."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """How bad links and machines are until ``healed_at``. Shares are of messages; times are seconds."""

    latency: float = 0.05
    loss: float = 0.0
    duplicate: float = 0.0
    partition_every: float = 0.0
    partition_for: float = 0.0
    crash_every: float = 0.0
    down_for: float = 5.0
    starved: frozenset[int] = frozenset()
    """Kinds of frames of which four in five are lost, and nothing is made up for on the sync stream."""
    healed_at: float = float("inf")


class Links:
    """What becomes of what is sent, drawn from ``dice`` until the links are healed."""

    def __init__(self, dice: random.Random, faults: Faults) -> None:
        self.faults = faults
        self._dice = dice
        self._groups: dict[int, int] = {}

    def are_healed(self, now: float) -> bool:
        return now >= self.faults.healed_at

    def latency(self) -> float:
        return self._dice.expovariate(1 / self.faults.latency) if self.faults.latency else 0.0

    def copies(self, now: float) -> int:
        """How many times a frame is on its way."""
        return 1 + (now < self.faults.healed_at and self._dice.random() < self.faults.duplicate)

    def loses(self, now: float, kind: int | None = None) -> bool:
        """Whether a frame of ``kind`` is lost, or a request or response (None)."""
        if self.are_healed(now):
            return False
        if self.faults.starved and kind is None:
            return True
        loss = 0.8 if kind in self.faults.starved else self.faults.loss
        return self._dice.random() < loss

    def divide(self, numbers: Iterable[int]) -> None:
        """Put each peer on one of two sides."""
        self._groups = {number: self._dice.randrange(2) for number in numbers}

    def unite(self) -> None:
        self._groups = {}

    def divides(self, one: int, other: int) -> bool:
        return self._groups.get(one) != self._groups.get(other)
