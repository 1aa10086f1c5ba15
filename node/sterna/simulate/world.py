"""The world: peers that run ``sterna_protocol.node.Node``, one after the other, in virtual time.

Everything that happens is an event in one queue. A blob is its digest and the set of disks that hold it; what
is in it is the business of ``Learning``.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from sterna.simulate.attacks import Attack, Gossip
from sterna.simulate.blobs import Blobs
from sterna.simulate.crowd import acts_of
from sterna.simulate.dice import Dice
from sterna.simulate.faults import Faults
from sterna.simulate.invariants import Invariants
from sterna.simulate.learning import GENESIS_ADAPTER, Learning
from sterna.simulate.network import Network
from sterna.simulate.peer import NEVER, DiskRefused, Peer, key_of
from sterna.simulate.trace import Happening, Trace
from sterna.simulate.traffic import HEADS_SECONDS, Traffic, remembering_decode
from sterna_protocol.errors import LocalProtocolError, RemoteProtocolError, Untimely
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
from sterna_protocol.round.recovery import LOCK
from sterna_protocol.swarm.charter import Charter
from sterna_protocol.wire import signing
from sterna_protocol.wire.messages import Signed

DOWN_SECONDS = (0.2, 20.0)
EFFECTS_TO_CRASH = 12
"""A crash comes within that many effects, between any two of them."""

BLACKOUT = 0.1
"""Share of crashes that take everybody along."""

MIN_TICK = 1e-6
Step = Callable[[Node, float], list[Effect]]
Event = tuple[float, int, Peer | None, int, Callable[..., None], tuple[Any, ...]]
"""When, its number, to whom, in which of its lives, what, and with what."""


class Signatures:
    """``verify`` is ``signing.verify``, but checks a good signature once for all nodes of the swarm, and none
    that one of them made before its eyes."""

    def __init__(self) -> None:
        self._good: set[tuple[bytes, bytes, bytes]] = set()

    def made(self, message: Signed) -> None:
        """A node signed ``message`` with its own key."""
        self._good.add((message.author, message.signature, message.preimage()))

    def verify(self, peer: bytes, signature: bytes, preimage: bytes) -> None:
        claim = (peer, signature, preimage)
        if claim not in self._good:
            signing.verify(*claim)
            self._good.add(claim)


@dataclass(frozen=True, slots=True)
class Casting:
    """Who is who: the first ``trainers`` peers train, ``attacks`` are the Byzantine ones by number.

    Those in ``poisons`` are Byzantine in what they train alone, and keep the protocol.
    """

    peers: int
    trainers: int
    attacks: dict[int, Attack]
    poisons: dict[int, str] = field(default_factory=dict)


class World:
    """A swarm under ``charter`` whose founders are among the first peers; ``run`` lets time pass."""

    def __init__(
        self, seed: int, casting: Casting, charter: Charter, faults: Faults, learning: Learning
    ) -> None:
        self.now = 0.0
        self.trace = Trace()
        self.network = Network(seed, casting.peers, faults)
        self.dice = Dice(seed, "peers")
        self._faults = faults
        self.charter = charter
        self.queue: list[Event] = []
        self._count = 0
        self._closes = 0
        self._reached: dict[int, list[Peer]] = {}
        neighbours = self.network.neighbours()
        self.peers = [
            Peer(
                number=number,
                key=key_of(number),
                trains=number < casting.trainers,
                attack=casting.attacks.get(number),
                rate=self.dice.between(1 - faults.skew, 1 + faults.skew),
                offset=self.dice.between(0.0, 1000.0),
                neighbours=neighbours[number],
            )
            for number in range(casting.peers)
        ]
        self.honest = [peer for peer in self.peers if peer.is_honest]
        self.by_id = {peer.key.peer: peer for peer in self.peers}
        self.invariants = Invariants(
            charter,
            GENESIS_ADAPTER,
            learning,
            lambda key: key not in self.by_id or self.by_id[key].is_honest,
        )
        liars = [peer.key for peer in self.peers if not peer.is_honest]
        self._signatures = Signatures()
        self.traffic = Traffic(
            self, Gossip(keys=liars, merged=self.invariants.merged, entries={}, decisions={}, frames=[])
        )
        self._blobs = Blobs(self, learning)
        for peer in self.peers:
            self._at(self.dice.between(0.0, 0.5), self._boot, peer)
        if faults.partition:
            self._at(self.dice.between(0.0, 20.0), self._divide)
        self._is_sick = True

    # Running

    def run(self, until: Callable[[], bool], limit: float) -> None:
        """Until ``until`` holds, an invariant is broken, or the clock shows ``limit``."""
        queue, invariants = self.queue, self.invariants
        closes = -1
        while queue and self.now < limit and not invariants.violations:
            if closes != self._closes:
                # Only a closed round can bring the end nearer.
                closes = self._closes
                if until():
                    return
            self.happen(heapq.heappop(queue))

    def happen(self, event: Event) -> None:
        """Let an event of the queue happen, now if its time is over, and look at the peer afterwards."""
        time, _, peer, life, action, arguments = event
        if time > self.now:
            self.now = time
        if peer is None:
            action(*arguments)
            return
        if peer.life != life or peer.node is None:
            return
        try:
            action(peer, *arguments)
        except Exception as error:  # noqa: BLE001 - any exception is a finding about the code under test
            self._fail(peer, error)
        if peer.is_honest:
            self._look(peer)

    def heal(self) -> None:
        """No more faults; whoever is down comes back."""
        self._is_sick = False
        self.network.heal()
        self.trace.note(self.now, Happening.HEAL, 0)
        for peer in self.peers:
            peer.crash_after = None
        self.notice_all()

    def closed_by_all(self) -> int:
        """Rounds that every honest peer has closed."""
        return min(len(peer.disk.certificates) for peer in self.honest)

    def _fail(self, peer: Peer, error: Exception) -> None:
        if peer.is_honest:
            self.invariants.broken(f"peer {peer.number}: {type(error).__name__}: {error}")
        else:
            self._stop(peer)

    def _look(self, peer: Peer) -> None:
        node = peer.node
        if node is None:
            return
        self.invariants.stands(peer.number, node.round_, node.head, len(peer.disk.certificates))
        self.invariants.holds(peer.number, node.frames_held())

    # Events

    def _at(self, delay: float, action: Callable[..., None], *arguments: Any) -> None:
        self._count += 1
        heapq.heappush(self.queue, (self.now + delay, self._count, None, 0, action, arguments))

    def later(self, peer: Peer, delay: float, action: Callable[..., None], *arguments: Any) -> None:
        """An event of this life of ``peer``: a crash takes it along."""
        self._count += 1
        heapq.heappush(self.queue, (self.now + delay, self._count, peer, peer.life, action, arguments))

    # Lives

    def _boot(self, peer: Peer) -> None:
        peer.life += 1
        peer.crash_after = None
        peer.wake = NEVER
        peer.accepted = {}
        disk = peer.disk
        open_round = len(disk.certificates) + 1
        self.trace.note(self.now, Happening.BOOT, peer.number)
        try:
            peer.node = Node(
                self.charter,
                peer.key,
                trains=peer.trains,
                now=peer.clock(self.now),
                genesis_adapter=GENESIS_ADAPTER,
                certificates=tuple(disk.certificates),
                own_frames=disk.own_since(open_round - self.charter.limits.max_staleness),
                evidence=tuple(disk.evidence),
                acts=acts_of(self.charter, peer.number),
                verify=self._signatures.verify,
                decode=remembering_decode,
            )
            self._reached = {}
            self.input(peer, lambda node, now: node.start(now))
        except (LocalProtocolError, DiskRefused) as error:
            self._fail(peer, error)
        self._notice_around(peer)
        self.later(peer, self.dice.between(0.0, HEADS_SECONDS), self.traffic.exchange)
        if peer.attack is not None and peer.attack.is_active:
            self.later(peer, self.dice.between(0.0, 1.0), self.traffic.attack)

    def crash(self, peer: Peer) -> None:
        """Take ``peer`` down, now and then all with it; each boots a little later."""
        everybody = self.dice.chance(BLACKOUT)
        for down in self.peers if everybody else (peer,):
            if down.node is None:
                continue
            self.trace.note(self.now, Happening.CRASH, down.number)
            self._stop(down)
            self._at(self.dice.between(*DOWN_SECONDS), self._boot, down)

    def _stop(self, peer: Peer) -> None:
        peer.node = None
        peer.life += 1
        peer.crash_after = None
        self._notice_around(peer)

    def _divide(self) -> None:
        if self._is_sick:
            seconds = self.network.divide()
            self.trace.note(self.now, Happening.PARTITION, 0)
            self.notice_all()
            self._at(seconds, self._unite)

    def _unite(self) -> None:
        if self._is_sick:
            seconds = self.network.unite()
            self.notice_all()
            self._at(seconds, self._divide)

    # Who sees whom

    def are_linked(self, one: Peer, other: Peer) -> bool:
        """Whether both live and no partition runs between them."""
        if one.node is None or other.node is None:
            return False
        side = self.network.side
        return side is None or side[one.number] == side[other.number]

    def neighbours(self, peer: Peer) -> list[Peer]:
        """Those that ``peer`` reaches now, ascending."""
        found = self._reached.get(peer.number)
        if found is None:
            found = [
                other for number in peer.neighbours if self.are_linked(peer, other := self.peers[number])
            ]
            self._reached[peer.number] = found
        return found

    def notice_all(self) -> None:
        """Let everybody find out, in a moment, whom it reaches now."""
        self._reached = {}
        for peer in self.peers:
            self.later(peer, self.network.latency(), self._notice)

    def _notice_around(self, peer: Peer) -> None:
        self._reached = {}
        for number in (peer.number, *peer.neighbours):
            self.later(self.peers[number], self.network.latency(), self._notice)

    def _notice(self, peer: Peer) -> None:
        connected = frozenset(other.key.peer for other in self.neighbours(peer))
        self.input(peer, lambda node, now: node.peers_changed(now, connected))

    # Driving a node

    def input(self, peer: Peer, step: Step, blamed: Peer | None = None) -> None:
        node = peer.node
        if node is None:
            return
        try:
            effects = step(node, peer.clock(self.now))
        except Untimely:
            return
        except RemoteProtocolError as error:
            if peer.is_honest and (blamed is None or blamed.is_honest):
                self.invariants.blamed(peer.number, -1 if blamed is None else blamed.number, str(error))
            return
        self.perform(peer, effects)

    def perform(self, peer: Peer, effects: Iterable[Effect]) -> None:
        """Carry out effects in order, as far as the peer lives, and set its alarm."""
        for effect in effects:
            if peer.crash_after is not None:
                peer.crash_after -= 1
                if peer.crash_after <= 0:
                    self.crash(peer)
                    return
            self._carry_out(peer, effect)
        if peer.node is not None:
            self._set_clock(peer, peer.node)

    def _set_clock(self, peer: Peer, node: Node) -> None:
        wake = node.next_wake()
        if wake == NEVER:
            return
        at = max(peer.world_time(wake), self.now + MIN_TICK)
        if at < peer.wake or peer.wake <= self.now:
            peer.wake = at
            self.later(peer, at - self.now, self._tick, at)

    def _tick(self, peer: Peer, at: float) -> None:
        if peer.wake == at:
            peer.wake = NEVER
            self.trace.note(self.now, Happening.TICK, peer.number)
            self.input(peer, lambda node, now: node.tick(now))

    def _carry_out(self, peer: Peer, effect: Effect) -> None:
        match effect:
            case Broadcast(frame):
                if peer.is_honest:
                    self._hear(peer, frame)
                self.traffic.publish(peer, frame)
            case StoreOwn(round_, attempt, kind, frame):
                self.trace.note(self.now, Happening.STORE, peer.number, frame)
                peer.disk.put_own(round_, attempt, kind, frame)
                if kind != LOCK and isinstance(message := remembering_decode(frame), Signed):
                    self._signatures.made(message)
                    if peer.is_honest:
                        self.invariants.signed(message, frame)
            case StoreCertificate(certificate):
                if peer.is_honest:
                    self.invariants.certified(peer.number, certificate, len(peer.disk.certificates))
                peer.disk.certificates.append(certificate)
            case StoreEvidence(evidence):
                if peer.is_honest:
                    self.invariants.accused(peer.number, evidence.author, evidence)
                peer.disk.evidence.append(evidence)
            case Closed(certificate):
                self._close(peer, certificate.round_, certificate.id)
            case Request(other, data):
                self.traffic.ask(peer, self.by_id[other], data)
            case FetchDelta():
                self._blobs.fetch_delta(peer, effect)
            case Merge():
                self._blobs.merge(peer, effect)
            case FetchAdapter(adapter, holders):
                self._blobs.fetch_adapter(peer, adapter, holders)
            case Train():
                self._blobs.train(peer, effect)
            case Fork(ours):
                if peer.is_honest:
                    self.invariants.forks += 1
                    self.invariants.broken(f"peer {peer.number} sees a fork in round {ours.round_}")
            case Misbehaved(other, reason):
                if peer.is_honest and self.by_id[other].is_honest:
                    self.invariants.blamed(peer.number, self.by_id[other].number, reason)

    def _hear(self, peer: Peer, frame: bytes) -> None:
        message = remembering_decode(frame)
        if isinstance(message, Signed) and message.author == peer.key.peer:
            stored = peer.disk.own.get((message.round_, message.attempt, message.kind))
            self.invariants.said(message, frame, stored)

    def _close(self, peer: Peer, round_: int, name: bytes) -> None:
        self.trace.note(self.now, Happening.CLOSE, peer.number, name)
        peer.closed[round_] = self.now
        self._closes += 1
        peer.accepted = {}
        if self._is_sick and self._faults.crash and self.dice.chance(self._faults.crash):
            self.later(peer, self.dice.between(0.0, 15.0), self._doom)

    def _doom(self, peer: Peer) -> None:
        if self._is_sick:
            peer.crash_after = 1 + self.dice.below(EFFECTS_TO_CRASH)
