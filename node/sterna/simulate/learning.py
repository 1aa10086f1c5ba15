"""What deltas and adapters are made of: digests alone, or (``classroom.py``) what peers really learned."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

from sterna_protocol.swarm.roll import Branches
from sterna_protocol.wire.messages import SlateEntry

GENESIS_ADAPTER = hashlib.sha256(b"genesis").digest()
"""Stands for the adapter before the first round."""


class Learning(Protocol):
    """Where the digests of a simulated swarm come from; the same arguments give the same digest."""

    def trained(self, peer: int, round_: int, adapter: bytes) -> bytes:
        """The delta of peer number ``peer``, who starts from ``adapter``."""

    def merged(
        self, round_: int, previous: bytes, entries: Sequence[SlateEntry], branches: Branches
    ) -> bytes:
        """The adapter that the slate of a round makes of ``previous``; an empty one changes nothing.

        ``branches``: which of the authors count together (``merge.rules.merge``).
        """


class Synthetic:
    """Nobody learns: a delta is the number of its peer, an adapter all slates before it."""

    def trained(self, peer: int, round_: int, adapter: bytes) -> bytes:
        return hashlib.sha256(b"delta %d %d" % (peer, round_)).digest()

    def merged(
        self, round_: int, previous: bytes, entries: Sequence[SlateEntry], branches: Branches
    ) -> bytes:
        if not entries:
            return previous
        return hashlib.sha256(b"merge" + previous + b"".join(entry.delta for entry in entries)).digest()
