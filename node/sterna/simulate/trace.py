"""The trace: one digest over everything that happened, in order; two runs are the same if theirs are."""

from __future__ import annotations

import hashlib
import struct
from enum import IntEnum

PACK = struct.Struct("<dBI").pack
"""Seconds of virtual time, what happened, the number of the peer it happened to."""


PENDING = 1024
"""Events that are digested at once: many small updates cost more than the hash."""


class Happening(IntEnum):
    BOOT = 1
    CRASH = 2
    FRAME = 3
    REQUEST = 4
    RESPONSE = 5
    TICK = 6
    STORE = 7
    CLOSE = 9
    PARTITION = 11
    HEAL = 12


class Trace:
    """Counts events and digests them."""

    def __init__(self) -> None:
        self.events = 0
        self._digest = hashlib.sha256()
        self._pending: list[bytes] = []

    def note(self, now: float, what: Happening, peer: int, data: bytes = b"") -> None:
        self.events += 1
        self._pending.append(PACK(now, what, peer) + data)
        if len(self._pending) == PENDING:
            self._flush()

    def _flush(self) -> None:
        self._digest.update(b"".join(self._pending))
        self._pending.clear()

    def hexdigest(self) -> str:
        self._flush()
        return self._digest.hexdigest()
