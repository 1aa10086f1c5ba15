"""The peers around this node: who is there, which of them train, who was asked for what and when."""

from __future__ import annotations

from collections.abc import Sequence

from sterna_protocol.errors import Untimely

GRACE_SHARE = 4
"""A quarter of a vote's time after a connection broke, what its peer last said may still be on its way, and
the peer may be back."""


class Neighbours:
    """Bounds how often anybody is asked: each peer, and for each message, once in ``patience`` seconds.

    Somebody is *present* who is connected, or was until a moment ago, or from whom a message of this round or
    the one before was heard and whose connection has not broken since. In a large swarm most members are
    heard through others.
    """

    def __init__(self, me: bytes, patience: float) -> None:
        self.connected: frozenset[bytes] = frozenset()
        self._heard: dict[bytes, int] = {}
        self._leaving: dict[bytes, float] = {}
        self._me = me
        self._patience = patience
        self._trainers: set[bytes] = set()
        self._asked: dict[bytes, float] = {}
        self._catch_up_at: dict[bytes, float] = {}
        self._turns = 0

    def set_connected(self, now: float, peers: frozenset[bytes]) -> list[bytes]:
        """Take who is connected now; returns who is new, ascending."""
        new = sorted(peers - self.connected - {self._me})
        self._leaving = {peer: at for peer, at in self._leaving.items() if peer not in peers}
        for peer in self.connected - peers:
            self._heard.pop(peer, None)
            self._leaving[peer] = now + self._patience / GRACE_SHARE
        self.connected = peers - {self._me}
        self._trainers &= peers
        return new

    def note_heard(self, author: bytes, round_: int) -> None:
        """A new message of ``author`` for the open round ``round_`` was accepted."""
        self._heard[author] = round_

    def is_present(self, peer: bytes) -> bool:
        """Whether ``peer`` is there, as of the last ``settle``; this node always is."""
        return peer == self._me or peer in self.connected or peer in self._heard or peer in self._leaving

    def settle(self, now: float) -> None:
        """Those who were given a moment after their connection broke, and it is over, are away."""
        if self._leaving:
            self._leaving = {peer: at for peer, at in self._leaving.items() if at > now}

    def next_gone(self) -> float:
        """When ``settle`` will change something; infinity if never."""
        return min(self._leaving.values()) if self._leaving else float("inf")

    def open_round(self, round_: int) -> None:
        """``round_`` is open now: nothing of the last one is missing, and who was heard before it is away."""
        self._asked = {}
        self._heard = {peer: heard for peer, heard in self._heard.items() if heard >= round_ - 1}

    def note_trainer(self, peer: bytes, trains: bool) -> bool:
        """The heads of ``peer`` say whether it means to announce deltas; True if that is news."""
        known = len(self._trainers)
        if trains and peer in self.connected:
            self._trainers.add(peer)
        else:
            self._trainers.discard(peer)
        return len(self._trainers) != known

    @property
    def trainers(self) -> frozenset[bytes]:
        """Connected peers that train."""
        return frozenset(self._trainers)

    def start_catching_up(self, now: float, peer: bytes | None) -> bytes:
        """``peer``, who is ahead and is asked for certificates now.

        Raises:
            Untimely: it cannot be asked, or was just asked.
        """
        # [IGNORE] The sender can be asked, and was not just asked
        if peer is None or peer not in self.connected:
            raise Untimely("ahead of this node, from a peer that cannot be asked")
        if now < self._catch_up_at.get(peer, now):
            raise Untimely("ahead of this node, which already asks")
        self._catch_up_at = {peer: at for peer, at in self._catch_up_at.items() if peer in self.connected}
        self._catch_up_at[peer] = now + self._patience
        return peer

    def due(self, now: float, missing: Sequence[bytes]) -> list[bytes]:
        """Which of the ``missing`` messages to ask for now; they count as asked for."""
        if not self.connected:
            return []
        due = [
            name for name in missing if now >= self._asked.get(name, now - self._patience) + self._patience
        ]
        if due:
            self._asked = {name: at for name, at in self._asked.items() if name in missing}
            self._asked |= dict.fromkeys(due, now)
        return due

    def next_due(self, missing: Sequence[bytes]) -> float:
        """When ``due`` will have something; infinity if never."""
        if not missing or not self.connected:
            return float("inf")
        times = (self._asked.get(name, -self._patience) + self._patience for name in missing)
        return min(times)

    def turn(self, likely: frozenset[bytes]) -> bytes:
        """A connected peer to ask, each in turn, of those in ``likely`` if there are any."""
        peers = sorted(self.connected & likely) or sorted(self.connected)
        self._turns += 1
        return peers[self._turns % len(peers)]
