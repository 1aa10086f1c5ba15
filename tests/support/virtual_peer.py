"""A peer of the virtual network: its key, its disk, and what stands for deltas and adapters."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from sterna_protocol.node import Node
from sterna_protocol.swarm.charter import Charter
from sterna_protocol.swarm.defaults import default_charter
from sterna_protocol.wire import signing
from sterna_protocol.wire.messages import Certificate, Evidence, Figures, SlateEntry
from tests.support.byzantine import HONEST, Behaviour

GENESIS_ADAPTER = hashlib.sha256(b"genesis").digest()
FIGURES = Figures(
    loss_before_micronats=3_000_000,
    loss_after_micronats=2_900_000,
    steps=40,
    tokens=40_960,
    milliseconds=60_000,
)


@lru_cache(maxsize=256)
def key_of(number: int) -> signing.SigningKey:
    return signing.SigningKey.from_seed(hashlib.sha256(b"key %d" % number).digest())


def virtual_charter(
    founders: tuple[bytes, ...],
    *,
    min_deltas: int = 2,
    max_deltas: int = 64,
    max_staleness: int = 2,
    quorum: str = "byzantine",
    admission: Literal["invite", "open"] = "open",
    aged_rounds: int = 0,
) -> Charter:
    """A charter with short phases: 20 s to train, 3 s to attest, 1 s a vote. It trusts whoever comes."""
    return default_charter(
        name="virtual",
        nonce=bytes(16),
        founders=founders,
        base_name="none",
        base=bytes(32),
        tokenizer=bytes(32),
        layers=1,
        linears=(("q", 64, 64),),
        seed=bytes(32),
        train_milliseconds=20_000,
        attest_milliseconds=3_000,
        vote_milliseconds=1_000,
        min_deltas=min_deltas,
        max_deltas=max_deltas,
        max_staleness=max_staleness,
        quorum="majority" if quorum == "majority" else "byzantine",
        admission=admission,
        aged_rounds=aged_rounds,
    )


def merged_adapter(previous: bytes, entries: tuple[SlateEntry, ...]) -> bytes:
    """The digest that stands for the merge of a slate."""
    return hashlib.sha256(b"merge" + previous + b"".join(entry.delta for entry in entries)).digest()


class InvariantBroken(AssertionError):
    """The protocol did what it must never do."""


@dataclass(slots=True)
class Disk:
    """What survives a crash; refuses what the store refuses."""

    own: dict[tuple[int, int, int], bytes] = field(default_factory=dict)
    certificates: list[Certificate] = field(default_factory=list)
    evidence: list[Evidence] = field(default_factory=list)
    blobs: set[bytes] = field(default_factory=set)

    def put_own(self, round_: int, attempt: int, kind: int, frame: bytes) -> None:
        if self.own.setdefault((round_, attempt, kind), frame) != frame:
            raise InvariantBroken(f"two different own frames for {(round_, attempt, kind)}")

    def put_certificate(self, certificate: Certificate) -> None:
        if certificate.round_ != len(self.certificates) + 1:
            raise InvariantBroken(f"certificate of round {certificate.round_} after {len(self.certificates)}")
        self.certificates.append(certificate)

    def frames_since(self, round_: int) -> list[bytes]:
        return [frame for (at, _, _), frame in self.own.items() if at >= round_]


@dataclass(slots=True)
class Peer:
    """One node with its disk; ``node`` is None while it is down."""

    number: int
    key: signing.SigningKey
    behaviour: Behaviour
    trains: bool
    disk: Disk = field(default_factory=Disk)
    node: Node | None = None
    life: int = 0
    wake: float = float("inf")
    crash_after: int | None = None
    closed: list[tuple[int, bool]] = field(default_factory=list)

    @property
    def id(self) -> bytes:
        return self.key.peer

    @property
    def is_honest(self) -> bool:
        return self.behaviour is HONEST
