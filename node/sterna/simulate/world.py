"""The world: peers that run ``sterna_protocol.node.Node``, one after the other, in virtual time.

Everything that happens is an event in one queue. A blob is its digest and the set of disks that hold it; what
is in it is the business of ``Learning``.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sterna.simulate.attacks import ATTACKS, Gossip, faces, uncalled
from sterna.simulate.dice import Dice
from sterna.simulate.faults import Faults
from sterna.simulate.invariants import Invariants
from sterna.simulate.learning import GENESIS_ADAPTER, Learning
from sterna.simulate.network import Network
from sterna.simulate.peer import NEVER, DiskRefused, Peer, key_of
from sterna.simulate.trace import Happening, Trace
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
from sterna_protocol.swarm.charter import Charter
from sterna_protocol.wire import signing
from sterna_protocol.wire.messages import Figures, Signed, decode_frame

FIGURES = Figures(
    loss_before_micronats=3_000_000,
    loss_after_micronats=2_900_000,
    steps=40,
    tokens=40_960,
    milliseconds=60_000,
)
HEADS_SECONDS = 2.0
"""Mean time between two exchanges of heads, as in sterna.swarm.driver."""

TRAIN_SECONDS = (2.0, 10.0)
FETCH_SECONDS = (0.01, 0.5)
MERGE_SECONDS = (0.01, 0.3)
RETRY_SECONDS = 0.5
FETCH_TRIES = 4
DOWN_SECONDS = (0.2, 20.0)
EFFECTS_TO_CRASH = 12
"""A crash comes within that many effects, between any two of them."""

BLACKOUT = 0.1
"""Share of crashes that take everybody along."""

ONE_LIE = 0.5
"""How often a liar tells everybody the same: a quorum can only be led astray together."""

MIN_TICK = 1e-6
STATUS_EVERY = 64
"""Events of the whole run between two looks at how much a peer holds."""

Step = Callable[[Node, float], list[Effect]]


@lru_cache(maxsize=1 << 16)
def remembering_verify(peer: bytes, signature: bytes, preimage: bytes) -> None:
    """``signing.verify`` that checks a good signature once for all nodes of the process."""
    signing.verify(peer, signature, preimage)


remembering_decode = lru_cache(maxsize=1 << 12)(decode_frame)
"""``decode_frame`` that decodes a good frame once for all nodes of the process: records never change."""


@dataclass(frozen=True, slots=True)
class Casting:
    """Who is who: the first ``trainers`` peers train, ``attacks`` are the Byzantine ones by number."""

    peers: int
    trainers: int
    attacks: dict[int, str]


class World:
    """A swarm under ``charter`` whose founders are among the first peers; ``run`` lets time pass."""

    def __init__(
        self, seed: int, casting: Casting, charter: Charter, faults: Faults, learning: Learning
    ) -> None:
        self.now = 0.0
        self.trace = Trace()
        self.network = Network(seed, casting.peers, faults)
        self._dice = Dice(seed, "peers")
        self._faults = faults
        self._charter = charter
        self._learning = learning
        self._queue: list[tuple[float, int, Peer | None, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self._closes = 0
        neighbours = self.network.neighbours()
        self.peers = [
            Peer(
                number=number,
                key=key_of(number),
                trains=number < casting.trainers,
                attack=ATTACKS[casting.attacks[number]] if number in casting.attacks else None,
                rate=self._dice.between(1 - faults.skew, 1 + faults.skew),
                offset=self._dice.between(0.0, 1000.0),
                neighbours=neighbours[number],
            )
            for number in range(casting.peers)
        ]
        self.honest = [peer for peer in self.peers if peer.is_honest]
        self._by_id = {peer.key.peer: peer for peer in self.peers}
        self.invariants = Invariants(
            charter,
            GENESIS_ADAPTER,
            learning,
            lambda key: key not in self._by_id or self._by_id[key].is_honest,
        )
        liars = [peer.key for peer in self.peers if not peer.is_honest]
        self._gossip = Gossip(keys=liars, learning=learning, entries={}, decisions={}, frames=[])
        for peer in self.peers:
            self._at(self._dice.between(0.0, 0.5), self._boot, peer)
        if faults.partition:
            self._at(self._dice.between(0.0, 20.0), self._divide)
        self._is_sick = True

    # Running

    def run(self, until: Callable[[], bool], limit: float) -> None:
        """Until ``until`` holds, an invariant is broken, or the clock shows ``limit``."""
        queue, invariants = self._queue, self.invariants
        closes = -1
        while queue and self.now < limit and not invariants.violations:
            if closes != self._closes:
                # Only a closed round can bring the end nearer.
                closes = self._closes
                if until():
                    return
            self.now, _, peer, life, action, arguments = heapq.heappop(queue)
            if peer is None:
                action(*arguments)
                continue
            if peer.life != life or peer.node is None:
                continue
            try:
                action(peer, *arguments)
            except (LocalProtocolError, DiskRefused) as error:
                self._fail(peer, error)
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
        self._notice_all()

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
        head = node.head
        self.invariants.stands(
            peer.number,
            round_=node.round_,
            head=None if head is None else head.id,
            disk=len(peer.disk.certificates),
        )
        if self.trace.events % STATUS_EVERY == 0:
            self.invariants.holds(peer.number, node.status().messages)

    # Events

    def _at(self, delay: float, action: Callable[..., None], *arguments: Any) -> None:
        self._count += 1
        heapq.heappush(self._queue, (self.now + delay, self._count, None, 0, action, arguments))

    def _later(self, peer: Peer, delay: float, action: Callable[..., None], *arguments: Any) -> None:
        """An event of this life of ``peer``: a crash takes it along."""
        self._count += 1
        heapq.heappush(self._queue, (self.now + delay, self._count, peer, peer.life, action, arguments))

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
                self._charter,
                peer.key,
                trains=peer.trains,
                now=peer.clock(self.now),
                genesis_adapter=GENESIS_ADAPTER,
                certificates=tuple(disk.certificates),
                own_frames=disk.own_since(open_round - self._charter.limits.max_staleness),
                evidence=disk.evidence_of(open_round),
                verify=remembering_verify,
                decode=remembering_decode,
            )
            self._input(peer, lambda node, now: node.start(now))
        except (LocalProtocolError, DiskRefused) as error:
            self._fail(peer, error)
        self._notice_around(peer)
        self._later(peer, self._dice.between(0.0, HEADS_SECONDS), self._exchange)
        if peer.attack is not None and peer.attack.is_active:
            self._later(peer, self._dice.between(0.0, 1.0), self._attack)

    def _crash(self, peer: Peer) -> None:
        everybody = self._dice.chance(BLACKOUT)
        for down in self.peers if everybody else (peer,):
            if down.node is None:
                continue
            self.trace.note(self.now, Happening.CRASH, down.number)
            self._stop(down)
            self._at(self._dice.between(*DOWN_SECONDS), self._boot, down)

    def _stop(self, peer: Peer) -> None:
        peer.node = None
        peer.life += 1
        peer.crash_after = None
        self._notice_around(peer)

    def _divide(self) -> None:
        if self._is_sick:
            seconds = self.network.divide()
            self.trace.note(self.now, Happening.PARTITION, 0)
            self._notice_all()
            self._at(seconds, self._unite)

    def _unite(self) -> None:
        if self._is_sick:
            seconds = self.network.unite()
            self._notice_all()
            self._at(seconds, self._divide)

    # Who sees whom

    def _linked(self, one: Peer, other: Peer) -> bool:
        return (
            one.node is not None
            and other.node is not None
            and not self.network.is_cut(one.number, other.number)
        )

    def _neighbours(self, peer: Peer) -> list[Peer]:
        return [other for number in peer.neighbours if self._linked(peer, other := self.peers[number])]

    def _notice_all(self) -> None:
        for peer in self.peers:
            self._later(peer, self.network.latency(), self._notice)

    def _notice_around(self, peer: Peer) -> None:
        for number in (peer.number, *peer.neighbours):
            self._later(self.peers[number], self.network.latency(), self._notice)

    def _notice(self, peer: Peer) -> None:
        connected = frozenset(other.key.peer for other in self._neighbours(peer))
        self._input(peer, lambda node, now: node.peers_changed(now, connected))

    # Gossip

    def _publish(self, peer: Peer, frame: bytes) -> None:
        """Send a frame that the peer's node wants to be sent."""
        item = remembering_decode(frame)
        if isinstance(item, Signed):
            self._gossip.note(item, frame)
        others = self._neighbours(peer)
        attack = peer.attack
        if attack is None:
            for other in others:
                self._transmit(peer, other, frame)
            return
        shown = faces(attack, peer.key, frame, self._gossip, self._adapter_of(peer))
        if self._dice.chance(ONE_LIE):
            shown = [self._dice.pick(shown)]
        for other in others:
            if self._dice.chance(attack.shown):
                self._transmit(peer, other, self._dice.pick(shown))

    def _adapter_of(self, peer: Peer) -> bytes:
        certificates = peer.disk.certificates
        return certificates[-1].decision.adapter if certificates else GENESIS_ADAPTER

    def _transmit(self, sender: Peer, receiver: Peer, frame: bytes) -> None:
        network, now = self.network, self.now
        for _ in range(network.copies()):
            sender.messages += 1
            sender.bytes += len(frame)
            # A copy that comes after another one changes nothing: it counts, but nobody waits for it.
            if network.is_relayed and receiver.accepted.get(frame, NEVER) <= now:
                continue
            if network.is_lost():
                continue
            delay = network.latency()
            if network.is_relayed:
                if receiver.accepted.get(frame, NEVER) <= now + delay:
                    continue
                receiver.accepted[frame] = now + delay
            self._later(receiver, delay, self._deliver, sender, frame)

    def _deliver(self, receiver: Peer, sender: Peer, frame: bytes) -> None:
        if not self._linked(sender, receiver):
            receiver.accepted.pop(frame, None)
            return
        node = receiver.node
        if node is None:
            return
        self.trace.note(self.now, Happening.FRAME, receiver.number, frame)
        try:
            effects = node.receive(receiver.clock(self.now), frame, sender.key.peer)
        except Untimely:
            receiver.accepted.pop(frame, None)
            return
        except RemoteProtocolError as error:
            if receiver.is_honest and sender.is_honest:
                self.invariants.blamed(receiver.number, sender.number, str(error))
            return
        if self.network.is_relayed:
            self._relay(receiver, sender, frame)
        self._perform(receiver, effects)

    def _relay(self, peer: Peer, sender: Peer, frame: bytes) -> None:
        for other in self._neighbours(peer):
            if other is not sender and (peer.attack is None or self._dice.chance(peer.attack.shown)):
                self._transmit(peer, other, frame)

    def _attack(self, peer: Peer) -> None:
        """What an active attacker does every second."""
        node, attack = peer.node, peer.attack
        others = self._neighbours(peer)
        if node is None or attack is None:
            return
        if others:
            frames = uncalled(
                attack,
                self._dice,
                peer.key,
                swarm=self._charter.swarm_id,
                round_=node.round_,
                victims=[victim.key.peer for victim in self.honest],
                gossip=self._gossip,
            )
            for frame in frames:
                self._transmit(peer, self._dice.pick(others), frame)
        self._later(peer, 1.0, self._attack)

    # Sync

    def _exchange(self, peer: Peer) -> None:
        others = self._neighbours(peer)
        if others and peer.node is not None:
            self._ask(peer, self._dice.pick(others), peer.node.heads())
        self._later(peer, HEADS_SECONDS * self._dice.between(0.5, 1.5), self._exchange)

    def _ask(self, asker: Peer, peer: Peer, data: bytes) -> None:
        asker.messages += 1
        asker.bytes += len(data)
        if not self.network.is_lost() and self._linked(asker, peer):
            self._later(peer, self.network.latency(), self._respond, asker, data)

    def _respond(self, peer: Peer, asker: Peer, data: bytes) -> None:
        node, attack = peer.node, peer.attack
        if node is None or not self._linked(asker, peer) or (attack is not None and not attack.answers):
            return
        self.trace.note(self.now, Happening.REQUEST, peer.number, data)
        response = node.answer(asker.key.peer, data)
        if attack is not None and attack.garbles:
            response = response[:1] + response[2:] if self._dice.chance(0.5) else response[:-40]
        peer.messages += 1
        peer.bytes += len(response)
        if not self.network.is_lost():
            self._later(asker, self.network.latency(), self._synced, peer, response)

    def _synced(self, asker: Peer, peer: Peer, response: bytes) -> None:
        self.trace.note(self.now, Happening.RESPONSE, asker.number, response)
        self._input(asker, lambda node, now: node.synced(now, peer.key.peer, response), peer)

    # Driving a node

    def _input(self, peer: Peer, step: Step, blamed: Peer | None = None) -> None:
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
        self._perform(peer, effects)

    def _perform(self, peer: Peer, effects: Iterable[Effect]) -> None:
        """Carry out effects in order, as far as the peer lives, and set its alarm."""
        for effect in effects:
            if peer.crash_after is not None:
                peer.crash_after -= 1
                if peer.crash_after <= 0:
                    self._crash(peer)
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
            self._later(peer, at - self.now, self._tick, at)

    def _tick(self, peer: Peer, at: float) -> None:
        if peer.wake == at:
            peer.wake = NEVER
            self.trace.note(self.now, Happening.TICK, peer.number)
            self._input(peer, lambda node, now: node.tick(now))

    def _carry_out(self, peer: Peer, effect: Effect) -> None:
        match effect:
            case Broadcast(frame):
                if peer.is_honest:
                    self._hear(peer, frame)
                self._publish(peer, frame)
            case StoreOwn(round_, attempt, kind, frame):
                self.trace.note(self.now, Happening.STORE, peer.number, frame)
                peer.disk.put_own(round_, attempt, kind, frame)
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
                self._ask(peer, self._by_id[other], data)
            case FetchDelta():
                self._fetch(peer, effect, FETCH_TRIES)
            case Merge():
                self._later(peer, self._dice.between(*MERGE_SECONDS), self._merge, effect)
            case FetchAdapter(adapter, holders):
                self._fetch_adapter(peer, adapter, holders)
            case Train(round_, adapter):
                patience = 0.0 if peer.attack is None else peer.attack.patience
                self._later(peer, patience + self._dice.between(*TRAIN_SECONDS), self._train, round_, adapter)
            case Fork(ours):
                if peer.is_honest:
                    self.invariants.forks += 1
                    self.invariants.broken(f"peer {peer.number} sees a fork in round {ours.round_}")
            case Misbehaved(other, reason):
                if peer.is_honest and self._by_id[other].is_honest:
                    self.invariants.blamed(peer.number, self._by_id[other].number, reason)

    def _hear(self, peer: Peer, frame: bytes) -> None:
        message = remembering_decode(frame)
        if isinstance(message, Signed) and message.author == peer.key.peer:
            stored = peer.disk.own.get((message.round_, message.attempt, message.kind))
            self.invariants.said(peer.key.peer, message, frame, stored)

    def _close(self, peer: Peer, round_: int, name: bytes) -> None:
        self.trace.note(self.now, Happening.CLOSE, peer.number, name)
        peer.closed[round_] = self.now
        self._closes += 1
        peer.accepted = {}
        if self._is_sick and self._faults.crash and self._dice.chance(self._faults.crash):
            self._later(peer, self._dice.between(0.0, 15.0), self._doom)

    def _doom(self, peer: Peer) -> None:
        if self._is_sick:
            peer.crash_after = 1 + self._dice.below(EFFECTS_TO_CRASH)

    # Blobs

    def _train(self, peer: Peer, round_: int, adapter: bytes) -> None:
        delta = self._learning.trained(peer.number, round_, adapter)
        peer.disk.blobs.add(delta)
        self._input(peer, lambda node, now: node.trained(now, round_=round_, delta=delta, figures=FIGURES))

    def _gives(self, holder: Peer, peer: Peer, blob: bytes) -> bool:
        if blob not in holder.disk.blobs or not self._linked(holder, peer):
            return False
        return holder.attack is None or self._dice.chance(holder.attack.serves)

    def _fetch(self, peer: Peer, effect: FetchDelta, tries: int) -> None:
        is_had = effect.delta in peer.disk.blobs or any(
            self._gives(self._by_id[holder], peer, effect.delta) for holder in effect.holders
        )
        if is_had:
            self._later(peer, self._dice.between(*FETCH_SECONDS), self._fetched, effect, None)
        elif tries:
            self._later(peer, RETRY_SECONDS, self._fetch, effect, tries - 1)
        else:
            self._later(peer, RETRY_SECONDS, self._fetched, effect, "no holder was reached")

    def _fetched(self, peer: Peer, effect: FetchDelta, error: str | None) -> None:
        if error is None:
            peer.disk.blobs.add(effect.delta)
        self._input(peer, lambda node, now: node.delta_checked(now, effect.announcement, error))

    def _merge(self, peer: Peer, effect: Merge) -> None:
        missing = [entry for entry in effect.entries if entry.delta not in peer.disk.blobs]
        if missing and peer.is_honest:
            self.invariants.broken(f"peer {peer.number} is to merge a delta that it does not hold")
        adapter = self._learning.merged(effect.round_, effect.previous_adapter, effect.entries)
        if peer.attack is not None and not peer.attack.merges:
            adapter = bytes(reversed(adapter))
        peer.disk.blobs.add(adapter)
        self._input(peer, lambda node, now: node.merged(now, effect.slate, adapter))

    def _fetch_adapter(self, peer: Peer, adapter: bytes, holders: tuple[bytes, ...]) -> None:
        is_had = (
            adapter == GENESIS_ADAPTER
            or adapter in peer.disk.blobs
            or any(self._gives(self._by_id[holder], peer, adapter) for holder in holders)
        )
        if is_had:
            peer.disk.blobs.add(adapter)
            self._later(peer, self._dice.between(*FETCH_SECONDS), self._adapter_ready, adapter)
        else:
            self._later(peer, 2 * RETRY_SECONDS, self._fetch_adapter, adapter, holders)

    def _adapter_ready(self, peer: Peer, adapter: bytes) -> None:
        self._input(peer, lambda node, now: node.adapter_ready(now, adapter))
