"""One swarm's node, running: effects out, answers in.

The effects of the state machine (``sterna_protocol.node``) go through one queue and are carried out in order,
so that what must be durable is on the disk before what follows is sent. Work that takes long (training,
fetching, merging) runs beside the queue and comes back as an input.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from sterna.errors import NodeError, Unreachable
from sterna.swarm.activity import Activity
from sterna.swarm.blobs import Blobs
from sterna.swarm.gate import Gate
from sterna.swarm.ports import Journal, Network, Trainer
from sterna_protocol.errors import LocalProtocolError, RemoteProtocolError, Untimely
from sterna_protocol.merge.feedback import needs_feedback
from sterna_protocol.node import Node
from sterna_protocol.round.effects import (
    Broadcast,
    Closed,
    Effect,
    FetchAdapter,
    FetchDelta,
    Fork,
    Merge,
    Misbehaved,
    Request,
    StoreCertificate,
    StoreEvidence,
    StoreOwn,
    Train,
)
from sterna_protocol.swarm.charter import Charter
from sterna_protocol.wire.acts import Act
from sterna_protocol.wire.ids import short
from sterna_protocol.wire.messages import Certificate

logger = logging.getLogger(__name__)

HEADS_INTERVAL_SECONDS = 2.0
"""Between two anti-entropy exchanges with a random peer; a lost gossip message is back within two of them."""

REQUEST_TIMEOUT_SECONDS = 10.0
RETRY_SECONDS = 2.0

MIN_TICK_SECONDS = 0.01
"""Between two ticks, whatever the state machine asks for: its deadlines are in seconds."""

MISBEHAVIOUR_POINTS = 20
"""Score a peer loses for bytes that no correct peer sends; net bans at 100."""


@dataclass(frozen=True, slots=True)
class Respond:
    """An answer on the sync stream, in its place among the effects."""

    request_id: int
    response: bytes


class Driver:
    """Runs one ``Node`` until cancelled.

    Args:
        until_round: train for rounds up to this one, then only serve and vote; ``None``: for ever.
        gate: judges each certified adapter before the next training; ``None``: nobody does.
        closed_rounds: what the disk still knows of earlier rounds, continued in ``closed_rounds``.

    ``changed`` is called after anything a status display would show has changed.
    """

    def __init__(
        self,
        *,
        charter: Charter,
        node: Node,
        network: Network,
        trainer: Trainer | None,
        journal: Journal,
        clock: Callable[[], float],
        rng: random.Random,
        activity: Activity,
        closed_rounds: Sequence[dict[str, object]] = (),
        until_round: int | None = None,
        gate: Gate | None = None,
    ) -> None:
        self.charter = charter
        self.node = node
        self.activity = activity
        self.changed: Callable[[], None] = lambda: None
        self.peers: frozenset[bytes] = frozenset()
        self.closed_rounds = list(closed_rounds)
        self._network = network
        self._trainer = trainer
        self._journal = journal
        self._blobs = Blobs(charter, network, journal)
        self._clock = clock
        self._rng = rng
        self._until_round = until_round
        self._gate = gate
        self._queue: asyncio.Queue[Effect | Respond] = asyncio.Queue()
        self._woken = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None
        self._training: asyncio.Task[None] | None = None
        self._round_started = clock()

    async def run(self) -> None:
        """Drive the node until cancelled.

        Raises:
            StorageError: the disk refused a write that had to be durable.
        """
        async with asyncio.TaskGroup() as self._tasks:
            self._tasks.create_task(self._perform_effects())
            self._tasks.create_task(self._keep_time())
            self._tasks.create_task(self._exchange_heads())
            self._take(self.node.start(self._clock()))

    # What the network brings in.

    async def gossip(self, sender: bytes, frame: bytes) -> None:
        """Take one gossip frame that ``sender`` published."""
        await self._receive(sender, lambda: self.node.receive(self._clock(), frame, sender))

    async def answer(self, peer: bytes, request_id: int, data: bytes) -> None:
        """Answer one sync request, behind what is being stored: the answer may hold what we just signed."""
        try:
            response = self.node.answer(peer, data)
        except RemoteProtocolError as broken:
            await self.penalise(peer, str(broken))
            return
        self._queue.put_nowait(Respond(request_id, response))

    def bring(self, act: Act) -> None:
        """Bring an act of this node's operator before the committee."""
        self._take(self.node.bring(self._clock(), act))

    def peers_changed(self, peers: frozenset[bytes]) -> None:
        """Take the set of peers that are connected now."""
        self.peers = peers
        self._take(self.node.peers_changed(self._clock(), peers))

    # The loop.

    def _take(self, effects: list[Effect]) -> None:
        for effect in effects:
            self._queue.put_nowait(effect)
        self._woken.set()
        self.changed()

    async def _receive(self, peer: bytes, step: Callable[[], list[Effect]]) -> None:
        try:
            self._take(step())
        except Untimely as ignored:
            logger.debug("message.ignored", extra={"peer": short(peer), "why": str(ignored)})
        except RemoteProtocolError as broken:
            await self.penalise(peer, str(broken))

    async def penalise(self, peer: bytes, reason: str) -> None:
        """Count one breach of the protocol against ``peer``."""
        logger.info("peer.misbehaved", extra={"peer": short(peer), "why": reason})
        try:
            await self._network.penalise(peer, MISBEHAVIOUR_POINTS)
        except Unreachable as offline:
            logger.debug("penalise.failed", extra={"why": str(offline)})

    async def _keep_time(self) -> None:
        while True:
            self._woken.clear()
            delay = max(MIN_TICK_SECONDS, self.node.next_wake() - self._clock())
            try:
                async with asyncio.timeout(None if math.isinf(delay) else delay):
                    await self._woken.wait()
            except TimeoutError:
                self._take(self.node.tick(self._clock()))

    async def _exchange_heads(self) -> None:
        while True:
            await asyncio.sleep(HEADS_INTERVAL_SECONDS * (0.5 + self._rng.random()))
            if self.peers:
                await self._ask(self._rng.choice(sorted(self.peers)), self.node.heads())

    async def _perform_effects(self) -> None:
        while True:
            effect = await self._queue.get()
            await self._perform(effect)
            self.changed()

    async def _perform(self, effect: Effect | Respond) -> None:
        match effect:
            case Respond(request_id, response):
                await self._network.respond(request_id, response)
            case StoreOwn(round_, attempt, kind, frame):
                await self._journal.put_own(round_, attempt, kind, frame)
            case StoreCertificate(certificate):
                await self._journal.put_certificate(certificate)
            case StoreEvidence(evidence):
                await self._journal.put_evidence(evidence.frame())
            case Broadcast(frame):
                await self._publish(frame)
            case Request(peer, data):
                self._spawn(self._ask(peer, data))
            case FetchDelta():
                self._spawn(self._fetch_delta(effect))
            case Merge():
                self._spawn(self._merge(effect))
            case FetchAdapter():
                self._spawn(self._fetch_adapter(effect))
            case Train():
                self._start_training(effect)
            case Closed(certificate, included):
                await self._close_round(certificate, included)
            case Misbehaved(peer, reason):
                await self.penalise(peer, reason)
            case Fork(ours, theirs):
                self._report_fork(ours, theirs)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        if self._tasks is None:
            raise LocalProtocolError("effects are carried out only while the driver runs")
        return self._tasks.create_task(work)

    def _report_fork(self, ours: Certificate, theirs: Certificate) -> None:
        trouble = (
            f"round {ours.round_} has two valid certificates, ours {short(ours.id)} and {short(theirs.id)}: "
            "more members lie than the quorum allows; do not trust this swarm any longer"
        )
        if theirs.decision.is_reform:
            trouble = (
                f"the founders reformed round {ours.round_}, which this node had closed otherwise before: it "
                "stays with its own chain, which is longer; ask them which one goes on"
            )
        logger.error("chain.forked", extra={"round": ours.round_})
        self.activity.fork = trouble

    async def _publish(self, frame: bytes) -> None:
        try:
            await self._network.publish(frame)
        except Unreachable as offline:
            # Heads exchange brings the message to whoever missed it.
            logger.debug("publish.failed", extra={"why": str(offline)})

    async def _ask(self, peer: bytes, data: bytes) -> None:
        try:
            response = await self._network.request(peer, data, timeout=REQUEST_TIMEOUT_SECONDS)
        except Unreachable as silent:
            logger.debug("sync.failed", extra={"peer": short(peer), "why": str(silent)})
            return
        await self._receive(peer, lambda: self.node.synced(self._clock(), peer, response))

    # Long work.

    async def _fetch_delta(self, effect: FetchDelta) -> None:
        error: str | None = None
        try:
            await self._blobs.fetch_delta(effect)
        except (Unreachable, RemoteProtocolError) as failed:
            error = str(failed)
        self._take(self.node.delta_checked(self._clock(), effect.announcement, error))

    async def _fetch_adapter(self, effect: FetchAdapter) -> None:
        while True:
            try:
                await self._blobs.fetch_adapter(effect.adapter, effect.holders or tuple(self.peers))
                break
            except Unreachable as failed:
                logger.info("adapter.missing", extra={"adapter": short(effect.adapter), "why": str(failed)})
                await asyncio.sleep(RETRY_SECONDS)
        self._spawn(self._judge())
        self._take(self.node.adapter_ready(self._clock(), effect.adapter))

    async def _merge(self, effect: Merge) -> None:
        try:
            digest = await self._blobs.merge(effect, lambda: tuple(self.peers))
        except Unreachable as failed:
            logger.info("merge.postponed", extra={"round": effect.round_, "why": str(failed)})
            return
        self._take(self.node.merged(self._clock(), effect.slate, digest))

    # Judging and training.

    async def _judge(self) -> None:
        """Have the newest certified adapter judged, if it is here."""
        head = self.node.head
        if self._gate is not None and head is not None and self._journal.has_blob(head.decision.adapter):
            await self._gate.consider(head.round_, head.decision.adapter)
            self.changed()

    def _start_training(self, effect: Train) -> None:
        if self._training is not None:
            self._training.cancel()
            self._training = None
        if self._trainer is None or (self._until_round is not None and effect.round_ > self._until_round):
            return
        self._training = self._spawn(self._train(self._trainer, effect))

    async def _train(self, trainer: Trainer, effect: Train) -> None:
        kept = await self._journal.pending(effect.round_, effect.adapter)
        if kept is not None:
            digest, local = kept
        else:
            self.activity.training = True
            try:
                await self._judge()
                adapter = await self._blobs.adapter(effect.adapter, tuple(self.peers))
                feeds_back = needs_feedback(self.charter)
                unsent = await self._journal.unsent(effect.round_) if feeds_back else None
                local = await trainer.train(effect.round_, adapter, unsent)
            except NodeError as failed:
                # A node that cannot train still votes, serves and follows; its status says why.
                self.activity.trouble = str(failed)
                logger.warning("training.failed", extra={"round": effect.round_, "why": str(failed)})
                return
            finally:
                self.activity.training = False
            self.activity.trouble = None
            digest = await self._journal.put_blob(local.blob)
            await self._journal.put_pending(effect.round_, effect.adapter, digest, local)
        self._take(
            self.node.trained(self._clock(), round_=effect.round_, delta=digest, figures=local.figures)
        )

    async def _close_round(self, certificate: Certificate, included: bool) -> None:
        now = self._clock()
        entry: dict[str, object] = {
            "round": certificate.round_,
            "slate_size": len(certificate.decision.entries),
            "signatures": len(certificate.signatures),
            "adapter_digest": certificate.decision.adapter.hex(),
            "included": included,
            "seconds": round(now - self._round_started, 3),
        }
        self._round_started = now
        self.closed_rounds.append(entry)
        await self._journal.put_round_log(certificate.round_, entry)
        # Deltas of the round that is open now are in no certificate yet, and others may ask for them.
        await self._journal.collect(frozenset(author.delta for author in self.node.status().authors))
        self._spawn(self._judge())
