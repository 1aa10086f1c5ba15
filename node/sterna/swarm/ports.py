"""What the swarm driver needs of the parts around it; app plugs the real ones in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sterna_protocol.merge.feedback import Unsent
from sterna_protocol.wire.messages import Certificate, Figures


class Network(Protocol):
    """The wire. Methods raise ``Unreachable`` when nobody answers in time."""

    async def publish(self, data: bytes) -> None: ...
    async def request(self, peer: bytes, data: bytes, *, timeout: float) -> bytes: ...
    async def respond(self, request_id: int, data: bytes) -> None: ...
    async def fetch(self, digest: bytes, size: int, peers: Sequence[bytes], *, timeout: float) -> Path: ...
    async def penalise(self, peer: bytes, points: int) -> None: ...


@dataclass(frozen=True, slots=True)
class LocalDelta:
    """What our own training gave: the encoded delta and its figures.

    ``total``: all there was to send, where the codec leaves something out (sterna_protocol.merge.feedback).
    """

    blob: bytes
    figures: Figures
    total: bytes | None = None


class Trainer(Protocol):
    """Trains one round from an encoded adapter; raises ``WorkerFailed``.

    ``unsent``: what earlier deltas of the round's subspace left out, to be sent with this one.
    """

    async def train(self, round_: int, adapter: bytes, unsent: Unsent | None) -> LocalDelta: ...


class Journal(Protocol):
    """Durable state of one swarm; what a ``put_`` saved is on the disk when it returns.

    All raise ``StorageError``.
    """

    async def put_own(self, round_: int, attempt: int, kind: int, frame: bytes) -> None: ...
    async def put_certificate(self, certificate: Certificate) -> None: ...
    async def put_evidence(self, frame: bytes) -> None: ...
    async def put_pending(
        self, round_: int, base_adapter: bytes, delta: bytes, local: LocalDelta
    ) -> None: ...
    async def pending(self, round_: int, base_adapter: bytes) -> tuple[bytes, LocalDelta] | None: ...
    async def unsent(self, round_: int) -> Unsent | None: ...
    async def put_round_log(self, round_: int, entry: dict[str, object]) -> None: ...
    async def put_blob(self, data: bytes) -> bytes: ...
    async def read_blob(self, digest: bytes) -> bytes: ...
    async def collect(self, also_keep: frozenset[bytes]) -> None: ...
    def has_blob(self, digest: bytes) -> bool: ...
