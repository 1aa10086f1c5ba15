"""Virtual time: a seeded discrete-event network that drives real nodes, with faults, and checks invariants.

Everything that differs between two runs comes from the seed. Deltas and adapters are synthetic: a blob is its
digest and the set of peers that hold it.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from sterna_protocol.errors import RemoteProtocolError, Untimely
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
from sterna_protocol.swarm.defaults import default_charter
from sterna_protocol.wire import signing
from sterna_protocol.wire.messages import (
    Certificate,
    Evidence,
    Figures,
    Kind,
    Proposal,
    Signed,
    SlateEntry,
    decode_body,
    decode_frame,
)
from tests.support.byzantine import HONEST, Behaviour

GENESIS_ADAPTER = hashlib.sha256(b"genesis").digest()
FIGURES = Figures(
    loss_before_micronats=3_000_000,
    loss_after_micronats=2_900_000,
    steps=40,
    tokens=40_960,
    milliseconds=60_000,
)


@lru_cache(maxsize=1 << 16)
def remembering_verify(peer: bytes, signature: bytes, preimage: bytes) -> None:
    """``signing.verify`` that checks a signature once for all nodes of the process."""
    signing.verify(peer, signature, preimage)


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


class InvariantBroken(AssertionError):
    """The protocol did what it must never do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """How bad the network is until ``healed_at``. Shares are of messages; times are seconds."""

    latency: float = 0.05
    loss: float = 0.0
    duplicate: float = 0.0
    partition_every: float = 0.0
    partition_for: float = 0.0
    crash_every: float = 0.0
    down_for: float = 5.0
    starved: frozenset[int] = frozenset()
    """Kinds of frames of which four in five are lost, and nothing is made up for on the sync stream."""
    healed_at: float = float("inf")


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


class VirtualNetwork:
    """Peers 0..n-1 of one swarm. The first ``founders`` found it; ``behaviours`` makes some Byzantine; those
    in ``late`` come when a test boots them."""

    def __init__(
        self,
        seed: int,
        peers: int,
        *,
        founders: int | None = None,
        faults: Faults | None = None,
        behaviours: dict[int, Behaviour] | None = None,
        charter: Charter | None = None,
        train_seconds: tuple[float, float] = (2.0, 10.0),
        heads_seconds: float = 2.0,
        trains: Callable[[int], bool] = lambda number: True,
        late: frozenset[int] = frozenset(),
    ) -> None:
        self.random = random.Random(seed)
        self.faults = faults or Faults()
        self.now = 0.0
        self.events = 0
        self.messages = 0
        self.violations: list[str] = []
        self.decided: dict[int, bytes] = {}
        self.passes: Callable[[Peer, Peer, bytes], bool] = lambda sender, receiver, frame: True
        """A test's own losses: whether a frame gets through."""
        self.syncs: Callable[[Peer, Peer], bool] = lambda asker, peer: True
        """Whether a request gets through."""
        self.slow: dict[int, float] = {}
        """Seconds that the training of some peers takes."""
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._trace = hashlib.sha256()
        self._groups: dict[int, int] = {}
        self._choices: dict[int, set[bytes]] = {}
        self._sent: dict[tuple[bytes, int, int, int], bytes] = {}
        self._train_seconds = train_seconds
        self._heads_seconds = heads_seconds
        behaviours = behaviours or {}
        self.peers = [
            Peer(number, key_of(number), behaviours.get(number, HONEST), trains(number))
            for number in range(peers)
        ]
        self.by_id = {peer.id: peer for peer in self.peers}
        founding = sorted(peer.id for peer in self.peers[: founders or peers][:8])
        self.charter = charter or virtual_charter(tuple(founding))
        for peer in self.peers:
            if peer.number not in late:
                self._at(self.random.uniform(0, 0.5), lambda peer=peer: self.boot(peer))
        if self.faults.partition_every:
            self._at(self.random.expovariate(1 / self.faults.partition_every), self._partition)
        if self.faults.crash_every:
            for peer in self.peers:
                self._at(
                    self.random.expovariate(1 / self.faults.crash_every), lambda peer=peer: self._plan(peer)
                )

    # Running

    @property
    def trace_digest(self) -> str:
        """Equal for equal seeds."""
        return self._trace.hexdigest()

    @property
    def honest(self) -> list[Peer]:
        return [peer for peer in self.peers if peer.is_honest]

    def run(self, until: Callable[[VirtualNetwork], bool], limit: float) -> None:
        """Until ``until`` holds, or ``limit`` virtual seconds passed."""
        while self._queue and self.now < limit and not until(self):
            self.now, _, event = heapq.heappop(self._queue)
            self.events += 1
            event()
        if self.violations:
            raise InvariantBroken("; ".join(self.violations[:3]))

    def run_rounds(self, rounds: int, limit: float = 10_000.0) -> None:
        """Until every honest peer closed ``rounds`` rounds.

        Raises:
            InvariantBroken: it took longer than ``limit`` virtual seconds, or something worse.
        """
        self.run(lambda net: all(len(peer.disk.certificates) >= rounds for peer in net.honest), limit)
        behind = [len(peer.disk.certificates) for peer in self.honest]
        if min(behind) < rounds:
            raise InvariantBroken(f"rounds closed after {self.now:.0f} s: {behind}, wanted {rounds}")

    def _at(self, delay: float, event: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (self.now + delay, self._count, event))

    def _later(self, peer: Peer, delay: float, event: Callable[[], None]) -> None:
        """An event of one life of a peer: a crash takes it along."""
        life = peer.life
        self._at(delay, lambda: event() if peer.life == life and peer.node is not None else None)

    # Lives

    def boot(self, peer: Peer) -> None:
        """Start a peer with what its disk holds."""
        peer.life += 1
        peer.crash_after = None
        disk = peer.disk
        oldest = len(disk.certificates) + 1 - self.charter.limits.max_staleness
        peer.node = Node(
            self.charter,
            peer.key,
            trains=peer.trains,
            now=self.now,
            genesis_adapter=GENESIS_ADAPTER,
            certificates=tuple(disk.certificates),
            own_frames=disk.frames_since(oldest),
            evidence=tuple(disk.evidence),
            verify=remembering_verify,
        )
        self._trace_event("boot", peer, b"")
        self.perform(peer, peer.node.start(self.now))
        self._connect()
        self._later(peer, self.random.uniform(0, self._heads_seconds), lambda: self._exchange(peer))

    def crash(self, peer: Peer) -> None:
        """Take a peer down; it comes back after ``down_for``."""
        if peer.node is None:
            return
        self._trace_event("crash", peer, b"")
        peer.node = None
        peer.life += 1
        peer.wake = float("inf")
        self._connect()
        self._at(self.random.uniform(0.2, 2.0) * self.faults.down_for, lambda: self.boot(peer))

    def _plan(self, peer: Peer) -> None:
        """Crash within the next few effects, wherever in a list of them that is."""
        if self.now >= self.faults.healed_at:
            return
        peer.crash_after = self.random.randrange(1, 12)
        self._at(self.random.expovariate(1 / self.faults.crash_every), lambda: self._plan(peer))

    # The network

    def _partition(self) -> None:
        if self.now >= self.faults.healed_at:
            return
        self._groups = {peer.number: self.random.randrange(2) for peer in self.peers}
        self._connect()
        self._at(self.faults.partition_for, self._heal)

    def _heal(self) -> None:
        self._groups = {}
        self._connect()
        self._at(self.random.expovariate(1 / self.faults.partition_every), self._partition)

    def are_connected(self, one: Peer, other: Peer) -> bool:
        return (
            one is not other
            and one.node is not None
            and other.node is not None
            and self._groups.get(one.number) == self._groups.get(other.number)
        )

    def _connect(self) -> None:
        for peer in self.peers:
            self._later(peer, self._latency(), lambda peer=peer: self._notice(peer))

    def _notice(self, peer: Peer) -> None:
        connected = frozenset(other.id for other in self.peers if self.are_connected(peer, other))
        self._input(peer, lambda node: node.peers_changed(self.now, connected))

    def _latency(self) -> float:
        return self.random.expovariate(1 / self.faults.latency) if self.faults.latency else 0.0

    def _is_lost(self, kind: int | None = None) -> bool:
        """Whether a frame of ``kind`` is lost, or a request or response (None)."""
        if self.now >= self.faults.healed_at:
            return False
        if self.faults.starved and kind is None:
            return True
        loss = 0.8 if kind in self.faults.starved else self.faults.loss
        return self.random.random() < loss

    def send(self, sender: Peer, receiver: Peer, frame: bytes) -> None:
        """One gossip frame on its way."""
        copies = 1 + (self.now < self.faults.healed_at and self.random.random() < self.faults.duplicate)
        for _ in range(copies):
            self.messages += 1
            if not self._is_lost(frame[0]) and self.passes(sender, receiver, frame):
                self._later(receiver, self._latency(), lambda: self._deliver(sender, receiver, frame))

    def _deliver(self, sender: Peer, receiver: Peer, frame: bytes) -> None:
        if self.are_connected(sender, receiver):
            self._trace_event("frame", receiver, frame)
            self._input(receiver, lambda node: node.receive(self.now, frame, sender.id), sender)

    def _ask(self, asker: Peer, peer: Peer, data: bytes) -> None:
        answers = peer.behaviour.answers and self.syncs(asker, peer)
        if self._is_lost() or not self.are_connected(asker, peer) or not answers:
            return
        self._later(peer, self._latency(), lambda: self._respond(asker, peer, data))

    def _respond(self, asker: Peer, peer: Peer, data: bytes) -> None:
        if peer.node is None or self._is_lost() or not self.are_connected(asker, peer):
            return
        response = peer.node.answer(asker.id, data)
        self.messages += 2
        self._later(
            asker,
            self._latency(),
            lambda: self._input(asker, lambda node: node.synced(self.now, peer.id, response), peer),
        )

    def _exchange(self, peer: Peer) -> None:
        others = [other for other in self.peers if self.are_connected(peer, other)]
        if others and peer.node is not None:
            self._ask(peer, self.random.choice(others), peer.node.heads())
        self._later(peer, self._heads_seconds * self.random.uniform(0.5, 1.5), lambda: self._exchange(peer))

    # The driver

    def _input(self, peer: Peer, step: Callable[[Node], list[Effect]], blamed: Peer | None = None) -> None:
        if peer.node is None:
            return
        try:
            effects = step(peer.node)
        except Untimely:
            return
        except RemoteProtocolError as error:
            # Honest peers relay nothing in this network, so that an honest sender is never to blame.
            if peer.is_honest and blamed is not None and blamed.is_honest:
                self.violations.append(f"{peer.number} blames {blamed.number}: {error}")
            return
        self.perform(peer, effects)

    def perform(self, peer: Peer, effects: list[Effect]) -> None:
        """Carry out effects in order, as far as the peer lives, and set its clock."""
        for effect in effects:
            if peer.crash_after is not None:
                peer.crash_after -= 1
                if peer.crash_after <= 0:
                    self.crash(peer)
                    return
            self._trace_event(type(effect).__name__, peer, b"")
            self._perform(peer, effect)
        node = peer.node
        if node is not None:
            self._set_clock(peer, node)

    def _set_clock(self, peer: Peer, node: Node) -> None:
        wake = max(node.next_wake(), self.now + 1e-6)
        if wake < peer.wake or peer.wake <= self.now:
            peer.wake = wake
            if wake < float("inf"):
                self._later(peer, wake - self.now, lambda: self._tick(peer, wake))

    def _tick(self, peer: Peer, wake: float) -> None:
        if peer.wake == wake:
            peer.wake = float("inf")
            self._input(peer, lambda node: node.tick(self.now))

    def _perform(self, peer: Peer, effect: Effect) -> None:
        match effect:
            case StoreOwn(round_, attempt, kind, frame):
                peer.disk.put_own(round_, attempt, kind, frame)
            case StoreCertificate(certificate):
                self._check_certificate(peer, certificate)
                peer.disk.put_certificate(certificate)
            case StoreEvidence(evidence):
                self._check_evidence(peer, evidence)
                peer.disk.evidence.append(evidence)
            case Broadcast(frame):
                self._broadcast(peer, frame)
            case Request(other, data):
                self._ask(peer, self.by_id[other], data)
            case FetchDelta():
                self._fetch(peer, effect)
            case Merge():
                self._later(peer, self.random.uniform(0.01, 0.3), lambda: self._merge(peer, effect))
            case FetchAdapter(adapter):
                self._fetch_adapter(peer, adapter)
            case Train(round_):
                seconds = self.slow.get(peer.number, self.random.uniform(*self._train_seconds))
                self._later(peer, seconds, lambda: self._train(peer, round_))
            case Closed(certificate, included):
                peer.closed.append((certificate.round_, included))
            case Fork(ours, _):
                self.violations.append(f"peer {peer.number} sees a fork in round {ours.round_}")
            case Misbehaved(other, reason):
                if peer.is_honest and self.by_id[other].is_honest:
                    self.violations.append(f"{peer.number} blames {self.by_id[other].number}: {reason}")

    def _broadcast(self, peer: Peer, frame: bytes) -> None:
        if peer.is_honest:
            self._check_own(peer, frame)
        others = [other for other in self.peers if self.are_connected(peer, other)]
        message = decode_frame(frame)
        if isinstance(message, Signed) and message.kind == Kind.PROPOSAL:
            self._note_choice(message)
        choices = sorted(self._choices.get(message.round_, ())) if isinstance(message, Signed) else []
        shown = peer.behaviour.spread(self.random, peer.key, frame, len(others), choices)
        for other, faces in zip(others, shown, strict=True):
            for face in faces:
                self.send(peer, other, face)

    def _note_choice(self, message: Signed) -> None:
        body = decode_body(message)
        if isinstance(body, Proposal):
            self._choices.setdefault(message.round_, set()).add(body.decision.id)

    def _train(self, peer: Peer, round_: int) -> None:
        delta = hashlib.sha256(b"delta %d %d" % (peer.number, round_)).digest()
        peer.disk.blobs.add(delta)
        self._input(peer, lambda node: node.trained(self.now, round_=round_, delta=delta, figures=FIGURES))

    def _holders(self, peer: Peer, blob: bytes) -> list[Peer]:
        return [
            other
            for other in self.peers
            if blob in other.disk.blobs
            and self.are_connected(peer, other)
            and other.behaviour.serves_to(peer.number)
        ]

    def _fetch(self, peer: Peer, effect: FetchDelta, tries: int = 3) -> None:
        if effect.delta in peer.disk.blobs or self._holders(peer, effect.delta):
            self._later(peer, self.random.uniform(0.01, 0.5), lambda: self._fetched(peer, effect))
        elif tries:
            self._later(peer, 0.5, lambda: self._fetch(peer, effect, tries - 1))
        else:
            error = "no holder was reached"
            self._later(
                peer,
                0.5,
                lambda: self._input(
                    peer, lambda node: node.delta_checked(self.now, effect.announcement, error)
                ),
            )

    def _fetched(self, peer: Peer, effect: FetchDelta) -> None:
        peer.disk.blobs.add(effect.delta)
        self._input(peer, lambda node: node.delta_checked(self.now, effect.announcement, None))

    def _merge(self, peer: Peer, effect: Merge) -> None:
        missing = [entry for entry in effect.entries if entry.delta not in peer.disk.blobs]
        if missing:
            self.violations.append(f"peer {peer.number} is asked to merge a delta that it does not hold")
        adapter = merged_adapter(effect.previous_adapter, effect.entries)
        if not peer.behaviour.merges:
            adapter = bytes(reversed(adapter))
        peer.disk.blobs.add(adapter)
        self._input(peer, lambda node: node.merged(self.now, effect.slate, adapter))

    def _fetch_adapter(self, peer: Peer, adapter: bytes) -> None:
        if adapter in peer.disk.blobs or adapter == GENESIS_ADAPTER or self._holders(peer, adapter):
            peer.disk.blobs.add(adapter)
            self._later(
                peer,
                self.random.uniform(0.01, 0.5),
                lambda: self._input(peer, lambda node: node.adapter_ready(self.now, adapter)),
            )
        else:
            self._later(peer, 1.0, lambda: self._fetch_adapter(peer, adapter))

    # Invariants

    def _check_certificate(self, peer: Peer, certificate: Certificate) -> None:
        if not peer.is_honest:
            return
        decided = self.decided.setdefault(certificate.round_, certificate.id)
        if decided != certificate.id:
            raise InvariantBroken(f"two certificates for round {certificate.round_}")
        decision = certificate.decision
        if any(self.by_id[author].is_honest for author in decision.excluded if author in self.by_id):
            raise InvariantBroken(f"round {certificate.round_} excludes an honest peer")
        before = GENESIS_ADAPTER
        if certificate.round_ > 1:
            before = peer.disk.certificates[-1].decision.adapter
        expected = merged_adapter(before, decision.entries) if decision.entries else before
        if decision.adapter != expected:
            raise InvariantBroken(
                f"round {certificate.round_} certifies an adapter that its slate does not give"
            )

    def _check_evidence(self, peer: Peer, evidence: Evidence) -> None:
        if peer.is_honest and self.by_id[evidence.author].is_honest:
            raise InvariantBroken(f"honest peer {self.by_id[evidence.author].number} is proven two-faced")

    def _check_own(self, peer: Peer, frame: bytes) -> None:
        message = decode_frame(frame)
        if not isinstance(message, Signed) or message.author != peer.id:
            return
        place = (message.round_, message.attempt, message.kind)
        if peer.disk.own.get(place) != frame:
            raise InvariantBroken(
                f"peer {peer.number} sends a {Kind(message.kind).name} that it has not stored"
            )
        if self._sent.setdefault((peer.id, *place), frame) != frame:
            raise InvariantBroken(f"peer {peer.number} sends two messages for {place}")

    def _trace_event(self, what: str, peer: Peer, data: bytes) -> None:
        self._trace.update(b"%.6f %s %d " % (self.now, what.encode(), peer.number))
        self._trace.update(data)


def merged_adapter(previous: bytes, entries: tuple[SlateEntry, ...]) -> bytes:
    """The digest that stands for the merge of a slate."""
    return hashlib.sha256(b"merge" + previous + b"".join(entry.delta for entry in entries)).digest()
