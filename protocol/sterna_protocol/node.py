"""The node: the one state machine that the core, the simulator and the tests drive.

Sans-IO: bytes and the time come in, effects come out (round/effects.py). The caller carries effects out in
order and makes every Store* durable before the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sterna_protocol.errors import MalformedMessage, RemoteProtocolError, Untimely
from sterna_protocol.round.certificate import Verify
from sterna_protocol.round.chain import Chain
from sterna_protocol.round.checks import check_envelope
from sterna_protocol.round.early import Early
from sterna_protocol.round.effects import (
    Broadcast,
    Closed,
    Effect,
    FetchAdapter,
    Fork,
    Misbehaved,
    Request,
    StoreCertificate,
    Train,
)
from sterna_protocol.round.evidence import hold, make_evidence, place_of, verify_held
from sterna_protocol.round.heads import (
    Frames,
    Heads,
    Inventory,
    decode_request,
    decode_response,
    encode_sync,
)
from sterna_protocol.round.neighbours import Neighbours
from sterna_protocol.round.open_round import OpenRound
from sterna_protocol.round.pace import Pace
from sterna_protocol.round.pending import Pending, find_pending
from sterna_protocol.round.phases import Phase, vote_seconds
from sterna_protocol.round.pool import AUTHORS_KINDS, Pool
from sterna_protocol.round.recovery import Recovered, recover
from sterna_protocol.round.setting import Setting
from sterna_protocol.round.status import Status
from sterna_protocol.round.sync import (
    ask_certificates,
    ask_frames,
    follow_heads,
    follow_inventory,
    respond,
)
from sterna_protocol.swarm.charter import Charter
from sterna_protocol.swarm.roll import Roll
from sterna_protocol.wire import signing
from sterna_protocol.wire.acts import Act, is_act_frame
from sterna_protocol.wire.messages import (
    Certificate,
    Evidence,
    Figures,
    Item,
    Signed,
    decode_frame,
)


class Node:
    """One peer of one swarm.

    Args:
        trains: whether this node trains and announces deltas.
        now: seconds of a monotonic clock; every ``now`` is of the same one.
        genesis_adapter: digest of the adapter before round 1.
        certificates: the chain on disk, ascending without gaps.
        own_frames: the frames that StoreOwn effects wrote for the open round and the ``max_staleness``
            rounds before it, any order.
        evidence: what StoreEvidence effects wrote.
        acts: what this node's operator signed and no decision has carried out yet (``bring``).
        verify: ``signing.verify``, or an equal function that remembers answers.
        decode: ``decode_frame``, or an equal function that remembers answers.

    Raises:
        LocalProtocolError: the stored parts do not fit together.
    """

    def __init__(
        self,
        charter: Charter,
        key: signing.SigningKey,
        *,
        trains: bool,
        now: float,
        genesis_adapter: bytes,
        certificates: Sequence[Certificate] = (),
        own_frames: Sequence[bytes] = (),
        evidence: Sequence[Evidence] = (),
        acts: Sequence[Act] = (),
        verify: Verify = signing.verify,
        decode: Callable[[bytes], Item] = decode_frame,
    ) -> None:
        self._charter = charter
        self._swarm = charter.swarm_id
        self._key = key
        self._trains = trains
        self._verify = verify
        self._decode = decode
        self._chain = Chain(charter, genesis_adapter, certificates, verify)
        self._ready_adapter = genesis_adapter
        self._fetching_adapter: bytes | None = None
        self._training: int | None = None
        self._closed: Pool | None = None
        self._known_heads: Heads | None = None
        self._told: tuple[Heads, bytes] | None = None
        self._wake: float | None = None
        self._is_settled = False
        self._early = Early()
        self._own_acts = list(acts)
        self._neighbours = Neighbours(key.peer, vote_seconds(charter, 0))
        self._pace = Pace(charter)
        self._opened_rounds = False
        recovered = recover(key.peer, self._chain.round_, own_frames)
        self._open = self._open_round(now, recovered)
        own = self._open.own_announcement
        announced = (*recovered.earlier, *(() if own is None else (own,)))
        self._pending = find_pending(key.peer, self._chain, announced)
        for proof in evidence:
            self._restore_evidence(proof)

    # What can be asked at any time

    @property
    def round_(self) -> int:
        """The open round."""
        return self._chain.round_

    @property
    def head(self) -> Certificate | None:
        """The certificate of the last closed round."""
        return self._chain.head

    @property
    def head_adapter(self) -> bytes:
        """Digest of the adapter that the last closed round certified."""
        return self._chain.head_adapter

    @property
    def phase(self) -> Phase:
        return self._open.phase

    @property
    def committee(self) -> tuple[bytes, ...]:
        """Who decides the open round, ascending."""
        return self._open.setting.members

    @property
    def roll(self) -> Roll:
        """Who is in the swarm, after the last closed round."""
        return self._chain.roll

    @property
    def may_announce(self) -> bool:
        """Whether this node is in the swarm, or holds the act that lets it in."""
        return self._open.may_announce(self._key.peer)

    def status(self) -> Status:
        """Where this node stands."""
        return Status.of(
            self._open,
            me=self._key.peer,
            adapter_ready=self._ready_adapter == self.head_adapter,
            training=self._training,
        )

    def next_wake(self) -> float:
        """When to call ``tick`` at the latest; infinity if only messages can change anything."""
        if self._wake is None:
            around = self._neighbours
            missing = self._open.missing()
            self._wake = min(self._open.next_wake(), around.next_due(missing), around.next_gone())
        return self._wake

    def holds(self, frame: bytes) -> bool:
        """Whether exactly these bytes are held of the open round: once more they change nothing."""
        return self._open.pool.has_frame(frame)

    def frames_held(self) -> int:
        """How many frames of the open round and of the next are in memory."""
        return self._open.pool.frames_held() + len(self._early)

    # What happens

    def start(self, now: float) -> list[Effect]:
        """Call once, before anything else."""
        return self._bring_own() + self._advance(now)

    def tick(self, now: float) -> list[Effect]:
        """Time has passed."""
        return self._advance(now)

    def receive(self, now: float, frame: bytes, sender: bytes | None) -> list[Effect]:
        """Take a gossip frame. ``sender``: the peer that forwarded it, if known.

        Raises:
            RemoteProtocolError: no correct peer forwards this.
            Untimely: of no use. In either case nothing changed.
        """
        effects = self._take(now, frame, sender)
        return effects + self._advance(now)

    def bring(self, now: float, act: Act) -> list[Effect]:
        """Bring ``act`` before the committee, in this round and the next ones until one carries it out.

        One that the chain does not allow (an invite of a peer that is not in the swarm yet) waits.
        """
        if all(own.id != act.id for own in self._own_acts):
            self._own_acts.append(act)
        return self._bring_own() + self._advance(now)

    def peers_changed(self, now: float, peers: frozenset[bytes]) -> list[Effect]:
        """The set of connected peers is ``peers`` now."""
        new = self._neighbours.set_connected(now, peers)
        heads = self.heads() if new else b""
        return [*(Request(peer, heads) for peer in new), *self._advance(now)]

    def trained(self, now: float, *, round_: int, delta: bytes, figures: Figures) -> list[Effect]:
        """The training asked for with Train for ``round_`` gave the blob ``delta``, which is stored."""
        base = self._chain.adapter_before(round_)
        if self._training == round_:
            self._training = None
        if base is not None and (self._pending is None or self._pending.trained_round < round_):
            self._pending = Pending(delta, round_, base, figures)
        return self._advance(now)

    def delta_checked(self, now: float, announcement: bytes, error: str | None) -> list[Effect]:
        """The delta asked for with FetchDelta is stored and good (None), or why not."""
        self._open.delta_checked(now, announcement, error)
        return self._advance(now)

    def merged(self, now: float, slate: bytes, adapter: bytes) -> list[Effect]:
        """The merge asked for with Merge gave the blob ``adapter``, which is stored."""
        self._open.deliberation.merged(slate, adapter)
        return self._advance(now)

    def adapter_ready(self, now: float, adapter: bytes) -> list[Effect]:
        """The adapter asked for with FetchAdapter is stored."""
        if adapter == self.head_adapter:
            self._ready_adapter = adapter
        return self._advance(now)

    # Anti-entropy

    def heads(self) -> bytes:
        """A request that tells a peer where this node stands."""
        heads = self._heads()
        if self._told is None or self._told[0] is not heads:
            self._told = (heads, encode_sync(heads))
        return self._told[1]

    def answer(self, peer: bytes, request: bytes) -> bytes:
        """The response to a peer's request.

        Raises:
            MalformedMessage: not a request of this swarm.
        """
        asked = decode_request(request)
        # [REJECT] The request is about this swarm
        if asked.swarm != self._swarm:
            raise MalformedMessage(f"sync request about swarm {asked.swarm.hex()[:8]}")
        if isinstance(asked, Heads):
            self._note_trainer(peer, asked)
            return self.heads()
        return encode_sync(respond(asked, self._heads(), self._chain, self._open))

    def synced(self, now: float, peer: bytes, response: bytes) -> list[Effect]:
        """Take the response of ``peer`` to a Request or to ``heads``.

        Raises:
            MalformedMessage: not a response; nothing changed.
        """
        effects: list[Effect] = []
        match decode_response(response):
            case Heads() as theirs:
                # [REJECT] The response is about this swarm
                if theirs.swarm != self._swarm:
                    raise MalformedMessage(f"heads of swarm {theirs.swarm.hex()[:8]}")
                self._note_trainer(peer, theirs)
                asked = follow_heads(self._heads(), theirs)
                if asked is not None:
                    effects.append(Request(peer, encode_sync(asked)))
            case Inventory() as inventory:
                lacked = follow_inventory(self._heads(), inventory, self._open)
                if lacked is not None:
                    effects.append(Request(peer, encode_sync(lacked)))
            case Frames() as frames:
                self._is_settled = False
                effects += self._take_all(now, peer, frames.frames)
        # Most responses say that a peer stands where this node does.
        return effects if self._is_settled and now < self.next_wake() else effects + self._advance(now)

    def _take_all(self, now: float, peer: bytes, frames: Sequence[bytes]) -> list[Effect]:
        effects: list[Effect] = []
        before = self.round_
        # An act first: without it the announcement of whom it lets in is of no use.
        for frame in sorted(frames, key=is_act_frame, reverse=True):
            try:
                effects += self._take(now, frame, peer, is_pulled=True)
            except Untimely:
                continue
            except RemoteProtocolError as error:
                effects.append(Misbehaved(peer, str(error)))
                break
        if self.round_ > before:
            effects.append(Request(peer, self.heads()))
        return effects

    def _note_trainer(self, peer: bytes, heads: Heads) -> None:
        if self._neighbours.note_trainer(peer, heads.trains):
            self._is_settled = False

    def _heads(self) -> Heads:
        messages = self._open.pool.digest()
        known = self._known_heads
        if known is None or known.messages != messages or known.round_ != self.round_:
            self._known_heads = known = Heads(
                swarm=self._swarm,
                round_=self.round_,
                head=self._chain.head_id,
                messages=messages,
                trains=self._trains,
            )
        return known

    # Frames

    def _take(
        self, now: float, frame: bytes, sender: bytes | None, *, is_pulled: bool = False
    ) -> list[Effect]:
        # [IGNORE] The frame is new
        if self._open.pool.has_frame(frame):
            raise Untimely("already held")
        item = self._decode(frame)
        if isinstance(item, Certificate):
            return self._take_certificate(now, item, sender)
        if isinstance(item, Evidence):
            self._open.admit_evidence(item)
            self._open.add_evidence(item)
            return []
        if isinstance(item, Act):
            self._open.admit_act(item)
            self._open.add_act(item)
            return []
        if item.round_ == self.round_ - 1:
            return self._take_late(item, frame)
        if item.round_ > self.round_:
            return self._take_early(now, item, frame, sender)
        held = self._open.admit(item, frame)
        self._open.add(now, held)
        self._neighbours.note_heard(item.author, item.round_)
        return []

    def _take_certificate(self, now: float, certificate: Certificate, sender: bytes | None) -> list[Effect]:
        # [REJECT] The certificate is of this swarm
        if certificate.swarm != self._swarm:
            raise MalformedMessage(f"certificate of swarm {certificate.swarm.hex()[:8]}")
        if certificate.round_ > self.round_:
            return self._catch_up(now, sender)
        if certificate.round_ < self.round_:
            ours = self._chain.find_fork(certificate)
            if ours is None:
                raise Untimely(f"certificate of round {certificate.round_}, which is closed")
            return [Fork(ours, certificate)]
        self._chain.check_next(certificate)
        return self._close(now, certificate)

    def _take_early(self, now: float, message: Signed, frame: bytes, sender: bytes | None) -> list[Effect]:
        check_envelope(self._swarm, message)
        if message.round_ > self.round_ + 1:
            return self._catch_up(now, sender)
        # [IGNORE] The message is new and there is room for it
        if not self._early.has_room(place_of(message)):
            return self._catch_up(now, sender)
        # [IGNORE] The author is in the swarm, or about to be
        if message.author not in self.committee and not self._open.may_announce(message.author):
            return self._catch_up(now, sender)
        held = hold(message, frame)
        # [REJECT] The author signed it
        verify_held(held, self._verify)
        self._early.keep(held)
        try:
            return self._catch_up(now, sender)
        except Untimely:
            return []

    def _take_late(self, message: Signed, frame: bytes) -> list[Effect]:
        """A message of the round just closed is of use only as half of a proof against a member."""
        check_envelope(self._swarm, message)
        first = None if self._closed is None else self._closed.at(place_of(message))
        # [IGNORE] It contradicts what its author said in the same place
        if first is None or first.id == message.id:
            raise Untimely(f"message for round {message.round_}, round {self.round_} is open")
        # [IGNORE] The author is a member, and nothing is proven against it yet
        if message.author not in self.committee or message.author in self._open.pool.proofs():
            raise Untimely("nobody who is in office is proven two-faced by this")
        held = hold(message, frame)
        # [REJECT] The author signed it
        verify_held(held, self._verify)
        self._open.add_evidence(make_evidence(first, held))
        return []

    def _catch_up(self, now: float, sender: bytes | None) -> list[Effect]:
        """Ask a peer that is ahead for certificates, not more often than once in a vote's time."""
        peer = self._neighbours.start_catching_up(now, sender)
        return [Request(peer, encode_sync(ask_certificates(self._heads())))]

    # Going on

    def _advance(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        self._neighbours.settle(now)
        while True:
            self._open.deliberation.adapter_ready = self._ready_adapter == self.head_adapter
            effects += self._open.advance(now)
            if self._open.certificate is not None:
                certificate = self._open.certificate
                effects += self._close(now, certificate)
                effects.append(Broadcast(certificate.frame()))
            elif not self._contribute(effects):
                break
        effects += self._ask_missing(now) + self._ask_adapter()
        self._wake, self._is_settled = None, True
        return effects

    def _contribute(self, effects: list[Effect]) -> bool:
        """Commit to an announcement or train; True if something was sent."""
        if not self._trains or self._open.own_announcement is not None or not self.may_announce:
            return False
        oldest = self._open.setting.oldest_training
        if self._pending is not None and self._pending.trained_round < oldest:
            self._pending = None
        if self._pending is not None:
            self._open.commit(self._pending.announcement())
            return True
        is_idle = self._training is None or self._training < oldest
        if is_idle and self._ready_adapter == self.head_adapter:
            self._training = self.round_
            effects.append(Train(self.round_, self.head_adapter))
        return False

    def _ask_missing(self, now: float) -> list[Effect]:
        due = self._neighbours.due(now, self._open.missing())
        if not due:
            return []
        peer = self._neighbours.turn(self._open.pool.attesters())
        return [Request(peer, encode_sync(ask_frames(self._heads(), due)))]

    def _ask_adapter(self) -> list[Effect]:
        adapter, head = self.head_adapter, self.head
        if head is None or adapter in (self._ready_adapter, self._fetching_adapter):
            return []
        self._fetching_adapter = adapter
        holders = {entry.member for entry in head.signatures} | set(head.decision.attesters)
        return [FetchAdapter(adapter, tuple(sorted(holders - {self._key.peer})))]

    def _close(self, now: float, certificate: Certificate) -> list[Effect]:
        """Take a checked certificate of the open round, and open the next."""
        decision = certificate.decision
        included = self._pending is not None and self._pending.is_in(decision, self._key.peer)
        if included:
            self._pending = None
        if self._open.deliberation.has_merged(decision.adapter) or decision.adapter == self._ready_adapter:
            self._ready_adapter = decision.adapter
        if self._opened_rounds:
            self._pace.note_round(self._open.schedule.course, now)
        self._opened_rounds = True
        self._chain.append(certificate)
        self._closed = self._open.pool
        proofs = self._closed.remembered() | self._closed.proofs()
        waiting = self._open.deliberation.changes.held()
        self._open = self._open_round(now, None)
        for proof in proofs.values():
            self._open.carry_evidence(proof)
        self._neighbours.open_round(self.round_)
        for act in waiting:
            self._add_if_allowed(act, is_verified=True)
        for frame in self._early.take():
            try:
                self._take(now, frame, None)
            except (Untimely, RemoteProtocolError):
                continue
        return [StoreCertificate(certificate), Closed(certificate, included), *self._bring_own()]

    def _bring_own(self) -> list[Effect]:
        """Offer what no decision has carried out yet."""
        self._own_acts = [act for act in self._own_acts if not self.roll.has_done(act)]
        for act in self._own_acts:
            self._add_if_allowed(act)
        return [Broadcast(act.frame()) for act in self._own_acts if self._open.pool.has(act.id)]

    def _add_if_allowed(self, act: Act, *, is_verified: bool = False) -> None:
        try:
            self._open.admit_act(act, is_verified=is_verified)
        except (Untimely, RemoteProtocolError):
            return
        self._open.add_act(act)

    def _open_round(self, now: float, recovered: Recovered | None) -> OpenRound:
        return OpenRound(
            Setting.after(self._charter, self._swarm, self._chain),
            self._key,
            trains=self._trains,
            now=now,
            limits=self._pace.limits(),
            neighbours=self._neighbours,
            adapter_before=self._chain.adapter_before,
            verify=self._verify,
            recovered=recovered,
        )

    def _restore_evidence(self, proof: Evidence) -> None:
        try:
            self._open.admit_evidence(proof)
        except Untimely:
            # Only members write what strangers do not: this one had a seat.
            if proof.round_ < self.round_ and proof.kind not in AUTHORS_KINDS:
                self._open.carry_evidence(proof)
            return
        self._open.add_evidence(proof, is_stored=True)
