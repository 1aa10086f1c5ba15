"""Virtual time: a seeded discrete-event network that drives real nodes, with faults, and checks invariants.

Everything that differs between two runs comes from the seed. Deltas and adapters are synthetic: a blob is its
digest and the set of peers that hold it.

The node has a simulator of its own (``sterna.simulate``), and the two stay apart on purpose. The protocol is
a library without the node, so its tests run without the node. Here a test writes the schedule, frame by frame
(``passes``, ``syncs``, ``boot``, ``crash``); the simulator draws it from a seed, for large swarms. And each
judges the protocol by itself: code that both shared would be a blind spot of both.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable
from functools import lru_cache

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
from sterna_protocol.wire import signing
from sterna_protocol.wire.messages import (
    Kind,
    Proposal,
    Signed,
    decode_body,
    decode_frame,
)
from tests.support.byzantine import HONEST, Behaviour
from tests.support.judge import Judge
from tests.support.links import Faults, Links
from tests.support.virtual_blobs import VirtualBlobs
from tests.support.virtual_peer import (
    GENESIS_ADAPTER,
    InvariantBroken,
    Peer,
    key_of,
    virtual_charter,
)


@lru_cache(maxsize=1 << 16)
def remembering_verify(peer: bytes, signature: bytes, preimage: bytes) -> None:
    """``signing.verify`` that checks a signature once for all nodes of the process."""
    signing.verify(peer, signature, preimage)


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
        self.links = Links(self.random, faults or Faults())
        self.now = 0.0
        self.events = 0
        self.messages = 0
        self.passes: Callable[[Peer, Peer, bytes], bool] = lambda sender, receiver, frame: True
        """A test's own losses: whether a frame gets through."""
        self.syncs: Callable[[Peer, Peer], bool] = lambda asker, peer: True
        """Whether a request gets through."""
        self.slow: dict[int, float] = {}
        """Seconds that the training of some peers takes."""
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._trace = hashlib.sha256()
        self._choices: dict[int, set[bytes]] = {}
        self._train_seconds = train_seconds
        self._heads_seconds = heads_seconds
        behaviours = behaviours or {}
        self.peers = [
            Peer(number, key_of(number), behaviours.get(number, HONEST), trains(number))
            for number in range(peers)
        ]
        self.by_id = {peer.id: peer for peer in self.peers}
        self.judge = Judge(self.by_id)
        self.blobs = VirtualBlobs(self)
        founding = sorted(peer.id for peer in self.peers[: founders or peers][:8])
        self.charter = charter or virtual_charter(tuple(founding))
        for peer in self.peers:
            if peer.number not in late:
                self._at(self.random.uniform(0, 0.5), lambda peer=peer: self.boot(peer))
        if self.links.faults.partition_every:
            self._at(self.random.expovariate(1 / self.links.faults.partition_every), self._partition)
        if self.links.faults.crash_every:
            for peer in self.peers:
                self._at(self._until_crash(), lambda peer=peer: self._plan(peer))

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
        self.judge.raise_violations()

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

    def later(self, peer: Peer, delay: float, event: Callable[[], None]) -> None:
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
        self.later(peer, self.random.uniform(0, self._heads_seconds), lambda: self._exchange(peer))

    def crash(self, peer: Peer) -> None:
        """Take a peer down; it comes back after ``down_for``."""
        if peer.node is None:
            return
        self._trace_event("crash", peer, b"")
        peer.node = None
        peer.life += 1
        peer.wake = float("inf")
        self._connect()
        self._at(self.random.uniform(0.2, 2.0) * self.links.faults.down_for, lambda: self.boot(peer))

    def _plan(self, peer: Peer) -> None:
        """Crash within the next few effects, wherever in a list of them that is."""
        if self.links.are_healed(self.now):
            return
        peer.crash_after = self.random.randrange(1, 12)
        self._at(self._until_crash(), lambda: self._plan(peer))

    def _until_crash(self) -> float:
        return self.random.expovariate(1 / self.links.faults.crash_every)

    # The network

    def _partition(self) -> None:
        if self.links.are_healed(self.now):
            return
        self.links.divide(peer.number for peer in self.peers)
        self._connect()
        self._at(self.links.faults.partition_for, self._heal)

    def _heal(self) -> None:
        self.links.unite()
        self._connect()
        self._at(self.random.expovariate(1 / self.links.faults.partition_every), self._partition)

    def are_connected(self, one: Peer, other: Peer) -> bool:
        return (
            one is not other
            and one.node is not None
            and other.node is not None
            and not self.links.divides(one.number, other.number)
        )

    def _connect(self) -> None:
        for peer in self.peers:
            self.later(peer, self.links.latency(), lambda peer=peer: self._notice(peer))

    def _notice(self, peer: Peer) -> None:
        connected = frozenset(other.id for other in self.peers if self.are_connected(peer, other))
        self.input(peer, lambda node: node.peers_changed(self.now, connected))

    def send(self, sender: Peer, receiver: Peer, frame: bytes) -> None:
        """One gossip frame on its way."""
        for _ in range(self.links.copies(self.now)):
            self.messages += 1
            if not self.links.loses(self.now, frame[0]) and self.passes(sender, receiver, frame):
                self.later(receiver, self.links.latency(), lambda: self._deliver(sender, receiver, frame))

    def _deliver(self, sender: Peer, receiver: Peer, frame: bytes) -> None:
        if self.are_connected(sender, receiver):
            self._trace_event("frame", receiver, frame)
            self.input(receiver, lambda node: node.receive(self.now, frame, sender.id), sender)

    def _ask(self, asker: Peer, peer: Peer, data: bytes) -> None:
        answers = peer.behaviour.answers and self.syncs(asker, peer)
        if self.links.loses(self.now) or not self.are_connected(asker, peer) or not answers:
            return
        self.later(peer, self.links.latency(), lambda: self._respond(asker, peer, data))

    def _respond(self, asker: Peer, peer: Peer, data: bytes) -> None:
        if peer.node is None or self.links.loses(self.now) or not self.are_connected(asker, peer):
            return
        response = peer.node.answer(asker.id, data)
        self.messages += 2
        self.later(
            asker,
            self.links.latency(),
            lambda: self.input(asker, lambda node: node.synced(self.now, peer.id, response), peer),
        )

    def _exchange(self, peer: Peer) -> None:
        others = [other for other in self.peers if self.are_connected(peer, other)]
        if others and peer.node is not None:
            self._ask(peer, self.random.choice(others), peer.node.heads())
        self.later(peer, self._heads_seconds * self.random.uniform(0.5, 1.5), lambda: self._exchange(peer))

    # The driver

    def input(self, peer: Peer, step: Callable[[Node], list[Effect]], blamed: Peer | None = None) -> None:
        if peer.node is None:
            return
        try:
            effects = step(peer.node)
        except Untimely:
            return
        except RemoteProtocolError as error:
            # Honest peers relay nothing in this network, so that an honest sender is never to blame.
            if blamed is not None:
                self.judge.blamed(peer, blamed, error)
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
                self.later(peer, wake - self.now, lambda: self._tick(peer, wake))

    def _tick(self, peer: Peer, wake: float) -> None:
        if peer.wake == wake:
            peer.wake = float("inf")
            self.input(peer, lambda node: node.tick(self.now))

    def _perform(self, peer: Peer, effect: Effect) -> None:
        match effect:
            case StoreOwn(round_, attempt, kind, frame):
                peer.disk.put_own(round_, attempt, kind, frame)
            case StoreCertificate(certificate):
                self.judge.certified(peer, certificate)
                peer.disk.put_certificate(certificate)
            case StoreEvidence(evidence):
                self.judge.accused(peer, evidence)
                peer.disk.evidence.append(evidence)
            case Broadcast(frame):
                self._broadcast(peer, frame)
            case Request(other, data):
                self._ask(peer, self.by_id[other], data)
            case FetchDelta():
                self.blobs.fetch_delta(peer, effect)
            case Merge():
                self.later(peer, self.random.uniform(0.01, 0.3), lambda: self.blobs.merge(peer, effect))
            case FetchAdapter(adapter):
                self.blobs.fetch_adapter(peer, adapter)
            case Train(round_):
                seconds = self.slow.get(peer.number, self.random.uniform(*self._train_seconds))
                self.later(peer, seconds, lambda: self.blobs.train(peer, round_))
            case Closed(certificate, included):
                peer.closed.append((certificate.round_, included))
            case Fork(ours, _):
                self.judge.violations.append(f"peer {peer.number} sees a fork in round {ours.round_}")
            case Misbehaved(other, reason):
                self.judge.blamed(peer, self.by_id[other], reason)

    def _broadcast(self, peer: Peer, frame: bytes) -> None:
        if peer.is_honest:
            self.judge.said(peer, frame)
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

    def _trace_event(self, what: str, peer: Peer, data: bytes) -> None:
        self._trace.update(b"%.6f %s %d " % (self.now, what.encode(), peer.number))
        self._trace.update(data)
