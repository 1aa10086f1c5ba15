"""The store as one swarm's driver sees it: every call runs in the store's own thread."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import ParamSpec, TypeVar

from sterna.store import PendingDelta, SeenPeer, Store, Verdict
from sterna.swarm.gate import Judged
from sterna.swarm.ports import LocalDelta
from sterna_protocol.merge.feedback import Unsent
from sterna_protocol.merge.scheme import subspace_of
from sterna_protocol.swarm.charter import AdapterScheme, SignedCharter
from sterna_protocol.wire.messages import Certificate

P = ParamSpec("P")
T = TypeVar("T")


class SwarmJournal:
    """``sterna.swarm.ports.Journal`` over a ``Store``."""

    def __init__(self, store: Store, swarm: bytes, thread: Executor) -> None:
        self._store = store
        self._swarm = swarm
        self._thread = thread

    async def _do(self, call: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, lambda: call(*arguments, **named)
        )

    async def put_own(self, round_: int, attempt: int, kind: int, frame: bytes) -> None:
        await self._do(self._store.put_own, self._swarm, round_, attempt, kind, frame)

    async def put_certificate(self, certificate: Certificate) -> None:
        await self._do(self._store.put_certificate, self._swarm, certificate.round_, certificate.frame())

    async def put_evidence(self, frame: bytes) -> None:
        await self._do(self._store.put_evidence, self._swarm, frame)

    async def put_pending(self, round_: int, base_adapter: bytes, delta: bytes, local: LocalDelta) -> None:
        total = None if local.total is None else await self.put_blob(local.total)
        await self._do(
            self._store.put_pending,
            self._swarm,
            PendingDelta(round_, base_adapter, delta, local.figures, total),
        )

    async def pending(self, round_: int, base_adapter: bytes) -> tuple[bytes, LocalDelta] | None:
        """The delta already trained for this round from this adapter, and its digest."""
        pending = await self._do(self._store.pending, self._swarm)
        if pending is None or (pending.round_, pending.base_adapter) != (round_, base_adapter):
            return None
        return pending.delta, LocalDelta(await self.read_blob(pending.delta), pending.figures)

    async def unsent(self, round_: int) -> Unsent | None:
        """What earlier deltas of the subspace of ``round_``, which is trained now, left out."""
        scheme = await self._do(self._scheme)
        await self._do(self._store.feedback.settle, self._swarm, scheme, round_)
        return await self._do(self._store.feedback.unsent, self._swarm, subspace_of(scheme, round_))

    def _scheme(self) -> AdapterScheme:
        return SignedCharter.decode(self._store.swarm(self._swarm).signed_charter).charter.adapter

    async def put_verdict(self, served: Judged, newest: Judged) -> None:
        await self._do(
            self._store.put_verdicts,
            self._swarm,
            served=Verdict(served.round_, served.adapter, served.loss),
            newest=Verdict(newest.round_, newest.adapter, newest.loss),
        )

    async def verdicts(self) -> tuple[Judged, Judged] | None:
        """What is served and what was judged last, if anything was."""
        found = await self._do(self._store.verdicts, self._swarm)
        if found is None:
            return None
        served, newest = (Judged(each.round_, each.adapter, each.loss) for each in found)
        return served, newest

    async def put_round_log(self, round_: int, entry: dict[str, object]) -> None:
        await self._do(self._store.put_round_log, self._swarm, round_, json.dumps(entry))

    async def put_peer(self, peer: bytes, addresses: tuple[str, ...]) -> None:
        await self._do(self._store.address_book.put, self._swarm, SeenPeer(peer, addresses, int(time.time())))

    async def put_blob(self, data: bytes) -> bytes:
        return await self._do(self._store.blobs.put, data)

    async def read_blob(self, digest: bytes) -> bytes:
        return await self._do(self._store.blobs.read, digest)

    async def collect(self, also_keep: frozenset[bytes]) -> None:
        await self._do(self._store.collect, also_keep)

    def has_blob(self, digest: bytes) -> bool:
        return self._store.blobs.has(digest)
