"""The open round: one node's part in it, from the first announcement to the certificate."""

from __future__ import annotations

from collections.abc import Mapping

from sterna_protocol.errors import LocalProtocolError
from sterna_protocol.round.certificate import Verify, make_certificate
from sterna_protocol.round.checks import ONCE_A_ROUND, AdapterBefore, check_evidence, check_signed
from sterna_protocol.round.consensus import (
    Action,
    Consensus,
    Decided,
    Propose,
    StartTimer,
    Step,
    Vote,
)
from sterna_protocol.round.deliberation import Blob, Deliberation
from sterna_protocol.round.effects import Broadcast, Effect, StoreEvidence, StoreOwn
from sterna_protocol.round.evidence import Held, Place, hold, place_of
from sterna_protocol.round.neighbours import Neighbours
from sterna_protocol.round.own import OwnMessages
from sterna_protocol.round.phases import Phase
from sterna_protocol.round.pool import Pool
from sterna_protocol.round.recovery import LOCK, LockRecord, Recovered, recovered_step
from sterna_protocol.round.schedule import Schedule
from sterna_protocol.round.setting import Setting
from sterna_protocol.wire.acts import Act
from sterna_protocol.wire.limits import MAX_ANNOUNCEMENTS
from sterna_protocol.wire.messages import (
    Announcement,
    Attestation,
    Body,
    Certificate,
    Commitment,
    Evidence,
    Kind,
    Precommit,
    Prevote,
    Proposal,
    Signed,
    decode_frame,
)
from sterna_protocol.wire.signing import SigningKey


class OpenRound:
    """Messages in, effects out, for one round; ``certificate`` is set when the round is decided.

    A node outside the committee follows: it keeps the messages and can recognise the decision.

    Args:
        limits: longest seconds of each phase (``Pace.limits``).
        neighbours: who is there.
    """

    def __init__(
        self,
        setting: Setting,
        key: SigningKey,
        *,
        trains: bool,
        now: float,
        limits: Mapping[Phase, float],
        neighbours: Neighbours,
        adapter_before: AdapterBefore,
        verify: Verify,
        recovered: Recovered | None = None,
    ) -> None:
        self.setting = setting
        self.certificate: Certificate | None = None
        self.pool = Pool(setting.members)
        self.deliberation = Deliberation(setting, self.pool, key.peer)
        self.schedule = Schedule(
            setting,
            self.pool,
            self.deliberation,
            me=key.peer,
            trains=trains,
            now=now,
            limits=limits,
            neighbours=neighbours,
        )
        self._neighbours = neighbours
        self._now = now
        self._adapter_before = adapter_before
        self._verify = verify
        self._is_member = key.peer in setting.members
        self._consensus = Consensus(
            order=setting.order,
            quorum=setting.quorum,
            blocking=setting.blocking,
            me=key.peer if self._is_member else None,
        )
        kept = {} if recovered is None else recovered.own
        self._own = OwnMessages(setting, key, now=now, kept=kept)
        self._commitment_place = self._own.place(Kind.COMMITMENT, 0)
        self._locks: set[int] = set()
        self._signatures: dict[tuple[int, bytes], dict[bytes, bytes]] = {}
        self._proposing: int | None = None
        self._timers: dict[tuple[Step, int], float] = {}
        self._out: list[Effect] = []
        if recovered is not None:
            self._recover(recovered)

    # What is seen

    @property
    def phase(self) -> Phase:
        return self.schedule.phase

    @property
    def attempt(self) -> int:
        return self._consensus.attempt

    @property
    def step(self) -> Step:
        return self._consensus.step

    @property
    def own_announcement(self) -> Held | None:
        return self._own.announcement

    def admit(self, message: Signed, frame: bytes) -> Held:
        """The message, checked; nothing is kept yet. Raises as checks.check_signed."""
        return check_signed(
            self.setting,
            self.pool,
            message,
            frame,
            pinned=self._consensus.pinned,
            wanted=lambda name: name in self.missing(),
            lets_in=self.deliberation.changes.lets_in,
            adapter_before=self._adapter_before,
            verify=self._verify,
        )

    def add(self, now: float, held: Held) -> None:
        """Keep a message that ``admit`` returned."""
        is_first = self.pool.at(held.place) is None
        if is_first:
            self.schedule.note_arrival(now, held)
        evidence, dropped = self.pool.add(held, self._consensus.pinned)
        self._forget(dropped)
        if evidence is not None:
            self._out += [StoreEvidence(evidence), Broadcast(evidence.frame())]
        self._count(held, is_first=is_first)

    def may_announce(self, peer: bytes) -> bool:
        """Whether ``peer`` is in the swarm, or an act that is held would admit it."""
        return self.deliberation.may_announce(peer)

    def admit_act(self, act: Act, *, is_verified: bool = False) -> None:
        """Return if a decision of this round may carry out ``act``; raises as Changes.admit."""
        self.deliberation.changes.admit(act, None if is_verified else self._verify)

    def add_act(self, act: Act) -> None:
        """Keep an act that ``admit_act`` passed."""
        for displaced in self.deliberation.changes.add(act):
            self.pool.drop_act(displaced)
        self.pool.add_act(act)

    def admit_evidence(self, evidence: Evidence) -> None:
        """Return if the proof is new; nothing is kept yet. Raises as checks.check_evidence."""
        check_evidence(self.setting, self.pool, evidence, pinned=self._consensus.pinned, verify=self._verify)

    def add_evidence(self, evidence: Evidence, *, is_stored: bool = False) -> None:
        """Keep a proof that ``admit_evidence`` passed."""
        if not is_stored:
            self._out += [StoreEvidence(evidence), Broadcast(evidence.frame())]
        place = place_of(evidence)
        is_earlier = place.round_ < self.setting.round_
        if is_earlier or not self.pool.has_room(place, self._consensus.pinned):
            self.pool.add_proof(evidence)
            return
        self._forget(self.pool.add_conflict(place, evidence, self._consensus.pinned))
        if place.kind == Kind.PREVOTE:
            self._consensus.add_two_faced(place.attempt, place.author)

    def delta_checked(self, now: float, announcement: bytes, error: str | None) -> None:
        """The delta of ``announcement`` is stored and good (None), or why not."""
        self.deliberation.delta_checked(announcement, error)
        if error is None:
            self.schedule.course.note_arrival(Phase.REVEAL, announcement, now)

    def carry_evidence(self, evidence: Evidence) -> None:
        """Keep a stored proof of an earlier round: against a member, or one who may become a member again."""
        if self.pool.is_member(evidence.author):
            self.add_evidence(evidence, is_stored=True)
        elif evidence.author not in self.setting.excluded:
            self.pool.remember(evidence)

    def missing(self) -> tuple[bytes, ...]:
        """Announcements that are needed but not held."""
        return self.deliberation.missing(self._consensus.offered)

    # What is done

    def commit(self, body: Announcement) -> None:
        """Sign and keep this node's one announcement of the round, and send the commitment to it."""
        held = self._sign(0, body)
        self.deliberation.blobs[held.id] = Blob.GOOD
        self._send(0, Commitment(announcement=held.id))

    def advance(self, now: float) -> list[Effect]:
        """Do all that can be done now."""
        self._now = now
        if self._timers:
            for timer in [timer for timer, due in self._timers.items() if due <= now]:
                del self._timers[timer]
                self._consensus.timeout(*timer)
        while self._turn(now):
            pass
        self._resend(now)
        effects, self._out = self._out, []
        return effects + self.deliberation.take_effects()

    def next_wake(self) -> float:
        """When ``advance`` may have something to do even if nothing is received."""
        wake = min(self._timers.values()) if self._timers else float("inf")
        wake = min(wake, self.schedule.next_end(self._now))
        if self._own.repeat_at < wake and any(map(self._is_resent, reversed(self._own))):
            return self._own.repeat_at
        return wake

    def _turn(self, now: float) -> bool:
        if self.certificate is not None:
            return False
        if self.own_announcement is not None and self._commitment_place not in self._own:
            # A crash came between the two.
            self._send(0, Commitment(announcement=self.own_announcement.id))
        self._follow_phases(now)
        if self.phase is not Phase.TRAIN:
            self._reveal()
        if self._is_member:
            if self.phase is Phase.REVEAL:
                self.deliberation.fetch_announced(self.schedule.committed.keys())
            self.deliberation.prepare(self.attempt, self._consensus.offered)
        action = self._consensus.next(self.deliberation.judge, self._is_away)
        if action is not None:
            self._act(now, action)
            return True
        return self._propose()

    def _follow_phases(self, now: float) -> None:
        is_overtaken = self._consensus.overtaken is not None
        while (begun := self.schedule.follow(now, is_overtaken=is_overtaken)) is not None:
            if begun is Phase.REVEAL:
                self._reveal()
            elif begun is Phase.ATTEST:
                self._attest()
            elif self._is_member:
                self._consensus.start()

    def _is_away(self, member: bytes) -> bool:
        return not self._neighbours.is_present(member)

    def _reveal(self) -> None:
        held = self.own_announcement
        if held is not None and self.pool.at(held.place) is None:
            self._out.append(Broadcast(held.frame))
            self.add(self._now, held)

    def _attest(self) -> None:
        accused = {*self.pool.proofs(), *self.pool.remembered()}
        accepted = [
            name
            for name in self.schedule.committed
            if self.deliberation.blobs.get(name) is Blob.GOOD
            and name in self.pool.announcements
            and not self.pool.is_conflicted(self.pool.announcements[name].place)
            and not self.pool.is_by(name, accused)
        ]
        self._send(0, Attestation(accepted=tuple(sorted(accepted)[:MAX_ANNOUNCEMENTS])))

    def _act(self, now: float, action: Action) -> None:
        match action:
            case StartTimer(step, attempt):
                self._timers[step, attempt] = now + self.schedule.step_seconds(attempt)
            case Propose(attempt, choice, valid_attempt):
                decision = self.deliberation.decision(choice)
                if not choice:
                    self._proposing = attempt
                elif decision is not None:
                    self._send(attempt, Proposal(decision=decision, valid_attempt=valid_attempt))
            case Vote(Kind.PREVOTE, attempt, choice):
                self._send(attempt, Prevote(choice=choice))
            case Vote(_, attempt, choice):
                if choice:
                    self._store_lock(attempt, choice)
                self._send(attempt, Precommit(choice=choice))
            case Decided(attempt, choice):
                decision = self.deliberation.decision(choice)
                if decision is None:
                    raise LocalProtocolError(f"decided {choice.hex()[:8]}, which is not at hand")
                self.certificate = make_certificate(
                    self.setting.charter,
                    decision,
                    attempt=attempt,
                    signatures=self._signatures[attempt, choice],
                )

    def _propose(self) -> bool:
        """Propose as soon as the draft is ready; True if something was sent."""
        attempt = self._proposing
        if attempt is None:
            return False
        if self.attempt != attempt or self.step is not Step.PROPOSE:
            self._proposing = None
            return False
        decision = self.deliberation.draft(attempt)
        if decision is None:
            return False
        self._proposing = None
        self._send(attempt, Proposal(decision=decision, valid_attempt=0))
        return True

    # Sending

    def _sign(self, attempt: int, body: Body) -> Held:
        """Sign and store a message; if one was signed for its place before, that one."""
        held, stored = self._own.sign(attempt, body)
        self._out += stored
        return held

    def _send(self, attempt: int, body: Body) -> None:
        """Sign, store, send and count."""
        held = self._sign(attempt, body)
        self._out.append(Broadcast(held.frame))
        if self.pool.at(held.place) is None:
            self.add(self._now, held)

    def _store_lock(self, attempt: int, choice: bytes) -> None:
        if attempt in self._locks:
            return
        self._locks.add(attempt)
        frames = [self.deliberation.proposal_frame(choice)]
        for member in sorted(self._consensus.prevoters(attempt, choice)):
            place = Place(self.setting.round_, attempt, Kind.PREVOTE, member)
            held = self.pool.at(place)
            frame = self.pool.frame(place.conflict_id) or (held.frame if held is not None else None)
            if frame is not None:
                frames.append(frame)
        record = LockRecord(round_=self.setting.round_, attempt=attempt, frames=tuple(frames))
        self._out.append(StoreOwn(self.setting.round_, attempt, LOCK, record.frame()))

    def _is_resent(self, held: Held) -> bool:
        """Whether the others may still be waiting for this message of ours."""
        is_current = held.place.kind in ONCE_A_ROUND or held.place.attempt == self.attempt
        return is_current and self.pool.at(held.place) is not None

    def _resend(self, now: float) -> None:
        progress = (self.phase, self.attempt, self.step, len(self._own))
        if self.certificate is None and self._own.must_repeat(now, progress):
            self._out += [Broadcast(held.frame) for held in self._own if self._is_resent(held)]

    # Counting

    def _count(self, held: Held, *, is_first: bool) -> None:
        """Tell the consensus of a message in the pool, or of a second one for its place."""
        message, body = held.message, held.body
        if not self.pool.is_member(message.author):
            return
        if isinstance(body, Proposal):
            choice = self.deliberation.learn(body.decision, held.frame)
            for old in self.deliberation.surplus(self._consensus.needed | {choice}):
                self.deliberation.forget(old)
                self._consensus.forget_known(old)
            if is_first:
                self._consensus.add_offer(message.attempt, message.author, choice, body.valid_attempt)
            else:
                self._consensus.add_known(choice)
        elif isinstance(body, Prevote):
            if is_first:
                self._consensus.add_vote(Kind.PREVOTE, message.attempt, message.author, body.choice)
            else:
                self._consensus.add_two_faced(message.attempt, message.author)
        elif isinstance(body, Precommit):
            self._consensus.add_vote(Kind.PRECOMMIT, message.attempt, message.author, body.choice)
            by_member = self._signatures.setdefault((message.attempt, body.choice), {})
            by_member[message.author] = message.signature

    def _forget(self, dropped: list[Place]) -> None:
        for place in dropped:
            self._consensus.forget(Kind(place.kind), place.attempt, place.author)
            for (attempt, _), by_member in self._signatures.items():
                if place.kind == Kind.PRECOMMIT and attempt == place.attempt:
                    by_member.pop(place.author, None)
        self._signatures = {key: by_member for key, by_member in self._signatures.items() if by_member}

    def _recover(self, recovered: Recovered) -> None:
        self._locks = set(recovered.locks)
        has_attested = self._own.place(Kind.ATTESTATION, 0) in self._own
        for held in recovered.own.values():
            if isinstance(held.body, Announcement):
                self.deliberation.blobs[held.id] = Blob.GOOD
            if has_attested or not isinstance(held.body, Announcement):
                self._recount(held)
        for frame in recovered.support:
            stored = decode_frame(frame)
            if isinstance(stored, Signed):
                self._recount(hold(stored, frame))
            elif isinstance(stored, Evidence) and not self.pool.is_conflicted(place_of(stored)):
                self.add_evidence(stored, is_stored=True)
        if not self._is_member:
            return
        if has_attested:
            self.schedule.enter(Phase.ATTEST, self._now)
        step = recovered_step(recovered.own.values())
        if step is not None:
            attempt, at, locked, proposed = step
            self.schedule.enter(Phase.DECIDE, self._now)
            self._consensus.restore(attempt, at, locked, proposed=proposed)

    def _recount(self, held: Held) -> None:
        if not self.pool.has(held.id):
            self.add(self._now, held)
