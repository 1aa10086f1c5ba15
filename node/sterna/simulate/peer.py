"""A peer of a simulated swarm: one node, its clock, what its disk keeps through a crash, its character."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cache

from sterna.simulate.attacks import Attack
from sterna.simulate.learning import GENESIS_ADAPTER
from sterna_protocol.node import Node
from sterna_protocol.wire.messages import Certificate, Evidence
from sterna_protocol.wire.signing import SigningKey

NEVER = float("inf")


@cache
def key_of(number: int) -> SigningKey:
    """The same key for a number in every run, so that signatures are checked once."""
    return SigningKey.from_seed(hashlib.sha256(b"sterna/simulate/%d" % number).digest())


class DiskRefused(Exception):
    """The node asks its disk for what the real store refuses."""


@dataclass(slots=True)
class Disk:
    """What survives a crash."""

    own: dict[tuple[int, int, int], bytes] = field(default_factory=dict)
    certificates: list[Certificate] = field(default_factory=list)
    evidence: list[Evidence] = field(default_factory=list)
    blobs: set[bytes] = field(default_factory=set)

    def adapter(self) -> bytes:
        """Digest of the adapter that the last certificate names."""
        return self.certificates[-1].decision.adapter if self.certificates else GENESIS_ADAPTER

    def put_own(self, round_: int, attempt: int, kind: int, frame: bytes) -> None:
        if self.own.setdefault((round_, attempt, kind), frame) != frame:
            raise DiskRefused(f"a second own frame for {(round_, attempt, kind)}")

    def own_since(self, round_: int) -> list[bytes]:
        return [frame for (at, _, _), frame in self.own.items() if at >= round_]


@dataclass(slots=True)
class Peer:
    """``node`` is None while it is down; ``life`` counts starts, and what one life planned ends with it.

    Args:
        rate: seconds of its clock in one second of the world's; ``offset`` is what the clock shows at 0.
        neighbours: numbers of the peers it sends gossip to, ascending.
        accepted: gossip frames of the open round that need not come again, and when they came.
        crash_after: effects left until it crashes.
    """

    number: int
    key: SigningKey
    trains: bool
    attack: Attack | None
    rate: float
    offset: float
    neighbours: tuple[int, ...] = ()
    disk: Disk = field(default_factory=Disk)
    node: Node | None = None
    life: int = 0
    wake: float = NEVER
    crash_after: int | None = None
    accepted: dict[bytes, float] = field(default_factory=dict)
    closed: dict[int, float] = field(default_factory=dict)
    messages: int = 0
    bytes: int = 0

    @property
    def is_honest(self) -> bool:
        return self.attack is None

    def clock(self, now: float) -> float:
        return self.offset + self.rate * now

    def world_time(self, clock: float) -> float:
        return (clock - self.offset) / self.rate
