"""Rates: a least gap between sends, and a budget that refills; both pure, time comes in."""

from __future__ import annotations


class Pace:
    """Keeps sends at least ``gap`` seconds apart."""

    def __init__(self, gap: float) -> None:
        self._gap = gap
        self._next = float("-inf")

    def wait(self, now: float) -> float:
        """Seconds to wait before the next send; the slot is taken by asking."""
        slot = max(now, self._next)
        self._next = slot + self._gap
        return slot - now


class Budget:
    """A token bucket: ``rate`` units a second, at most ``burst`` saved up."""

    def __init__(self, *, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left = burst
        self._at = now

    def take(self, amount: float, now: float) -> bool:
        """Spend ``amount`` if it is there; False changes nothing but the clock."""
        self._refill(now)
        if amount > self._left:
            return False
        self._left -= amount
        return True

    def wait(self, amount: float, now: float) -> float:
        """Spend ``amount`` now, on credit if need be; seconds until the debt is paid."""
        self._refill(now)
        self._left -= amount
        return max(0.0, -self._left / self._rate)

    def _refill(self, now: float) -> None:
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
