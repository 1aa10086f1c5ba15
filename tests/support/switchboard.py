"""A network without wires: drivers of one test reach each other by a call, in the same event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from sterna.errors import Unreachable
from sterna.swarm.driver import Driver
from sterna.swarm.gate import Judged
from sterna.swarm.ports import LocalDelta
from sterna_protocol.merge.feedback import Unsent
from sterna_protocol.wire.chunks import blob_digest
from sterna_protocol.wire.ids import short
from sterna_protocol.wire.messages import Certificate

Answer = Callable[[bytes, bytes], bytes | None]
"""(peer asked, request): what it answers instead of its driver, None for nothing else."""


class MemoryJournal:
    """``sterna.swarm.ports.Journal`` in memory."""

    def __init__(self) -> None:
        self.frames: dict[tuple[int, int, int], bytes] = {}
        self.certificates: list[Certificate] = []
        self.evidence: list[bytes] = []
        self.kept: tuple[int, bytes, bytes, LocalDelta] | None = None
        self.verdict: tuple[Judged, Judged] | None = None
        self.left: Unsent | None = None
        self.rounds: list[dict[str, object]] = []
        self.blobs: dict[bytes, bytes] = {}

    async def put_own(self, round_: int, attempt: int, kind: int, frame: bytes) -> None:
        assert self.frames.setdefault((round_, attempt, kind), frame) == frame

    async def put_certificate(self, certificate: Certificate) -> None:
        self.certificates.append(certificate)

    async def put_evidence(self, frame: bytes) -> None:
        self.evidence.append(frame)

    async def put_pending(self, round_: int, base_adapter: bytes, delta: bytes, local: LocalDelta) -> None:
        self.kept = (round_, base_adapter, delta, local)

    async def pending(self, round_: int, base_adapter: bytes) -> tuple[bytes, LocalDelta] | None:
        if self.kept is None or self.kept[:2] != (round_, base_adapter):
            return None
        return self.kept[2], self.kept[3]

    async def unsent(self, round_: int) -> Unsent | None:
        return self.left

    async def put_verdict(self, served: Judged, newest: Judged) -> None:
        self.verdict = (served, newest)

    async def put_round_log(self, round_: int, entry: dict[str, object]) -> None:
        self.rounds.append(entry)

    async def put_blob(self, data: bytes) -> bytes:
        self.blobs[blob_digest(data)] = data
        return blob_digest(data)

    async def read_blob(self, digest: bytes) -> bytes:
        return self.blobs[digest]

    async def collect(self, also_keep: frozenset[bytes]) -> None:
        pass

    def has_blob(self, digest: bytes) -> bool:
        return digest in self.blobs


class Switchboard:
    """Everybody who is plugged in. ``published`` is (author, frame, the author's journal at that moment)."""

    def __init__(self) -> None:
        self.drivers: dict[bytes, Driver] = {}
        self.journals: dict[bytes, MemoryJournal] = {}
        self.published: list[tuple[bytes, bytes, dict[tuple[int, int, int], bytes]]] = []
        self.penalties: list[tuple[bytes, int]] = []
        self.responses: list[tuple[int, bytes]] = []

    def plug_in(self, peer: bytes, driver: Driver, journal: MemoryJournal) -> None:
        self.drivers[peer] = driver
        self.journals[peer] = journal

    def connect_all(self) -> None:
        for driver in self.drivers.values():
            driver.peers_changed(frozenset(self.drivers))

    def line(self, peer: bytes, answer: Answer = lambda peer, data: None) -> Line:
        return Line(self, peer, answer)


class Line:
    """``sterna.swarm.ports.Network`` of one peer. ``answer`` may answer a request before any driver does."""

    def __init__(self, board: Switchboard, peer: bytes, answer: Answer) -> None:
        self._board = board
        self._peer = peer
        self._answer = answer

    async def publish(self, data: bytes) -> None:
        journal = self._board.journals[self._peer]
        self._board.published.append((self._peer, data, dict(journal.frames)))
        for peer, driver in list(self._board.drivers.items()):
            if peer != self._peer:
                await driver.gossip(self._peer, data)

    async def request(self, peer: bytes, data: bytes, *, timeout: float) -> bytes:
        await asyncio.sleep(0)
        answered = self._answer(peer, data)
        if answered is not None:
            return answered
        if peer not in self._board.drivers:
            raise Unreachable(f"{short(peer)} is not plugged in")
        return self._board.drivers[peer].node.answer(self._peer, data)

    async def respond(self, request_id: int, data: bytes) -> None:
        self._board.responses.append((request_id, data))

    async def fetch(self, digest: bytes, size: int, peers: Sequence[bytes], *, timeout: float) -> Path:
        for journal in self._board.journals.values():
            if journal.has_blob(digest) and len(journal.blobs[digest]) == size:
                mine = self._board.journals.get(self._peer)
                if mine is not None:
                    mine.blobs[digest] = journal.blobs[digest]
                return Path(digest.hex())
        raise Unreachable(f"nobody has {short(digest)}")

    async def penalise(self, peer: bytes, points: int) -> None:
        self._board.penalties.append((peer, points))
