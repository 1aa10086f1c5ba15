"""Who has misbehaved how much: points that fade, and a ban when there are too many.

py-libp2p's own peer scoring has all weights at zero and thresholds at minus infinity unless told otherwise
and knows nothing of our stream protocols, so every offence is counted here.
"""

from __future__ import annotations

from enum import IntEnum

LIMIT = 100
"""Points at which a peer is banned; offences below are weighed against it."""

HALF_LIFE = 600.0
"""Seconds in which points halve: a peer with a bad disk or a bad link is forgiven within an hour."""

BAN_SECONDS = 900.0
"""Length of a ban. Identities are free, so a longer ban costs an attacker nothing and an honest peer much."""

MAX_PEERS = 4096
"""Peers remembered; at the limit those with the fewest points are forgotten."""


class Offence(IntEnum):
    """Points for what a peer did."""

    RUDE = 2
    """Too many streams, requests or messages: may be a bug or a burst."""

    MALFORMED = 20
    """Bytes that no correct peer sends; five of them could still be one broken version."""

    LIED = 50
    """Bytes that a digest refutes. Twice is no accident."""


class Scores:
    """Points per peer. Time is any clock that only moves forward, in seconds."""

    def __init__(self) -> None:
        self._points: dict[bytes, tuple[float, float]] = {}
        self._banned_until: dict[bytes, float] = {}

    def add(self, peer: bytes, points: int, now: float) -> bool:
        """Count ``points`` against a peer; True if this made it banned."""
        total = self.points(peer, now) + points
        if total >= LIMIT and not self.is_banned(peer, now):
            self._points.pop(peer, None)
            self._banned_until[peer] = now + BAN_SECONDS
            self._forget(now)
            return True
        self._points[peer] = (total, now)
        self._forget(now)
        return False

    def points(self, peer: bytes, now: float) -> float:
        """What is left of a peer's points."""
        points, since = self._points.get(peer, (0.0, now))
        return float(points * 0.5 ** ((now - since) / HALF_LIFE))

    def is_banned(self, peer: bytes, now: float) -> bool:
        return self._banned_until.get(peer, float("-inf")) > now

    def _forget(self, now: float) -> None:
        if len(self._banned_until) > MAX_PEERS:
            self._banned_until = {p: until for p, until in self._banned_until.items() if until > now}
            while len(self._banned_until) > MAX_PEERS:
                del self._banned_until[min(self._banned_until, key=self._banned_until.__getitem__)]
        if len(self._points) > MAX_PEERS:
            ranked = sorted(self._points, key=lambda p: self.points(p, now))
            for peer in ranked[: MAX_PEERS // 8]:
                del self._points[peer]
