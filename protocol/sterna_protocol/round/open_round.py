"""The open round: one node's part in it, from the first announcement to the certificate."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from sterna_protocol.round.certificate import Verify, make_certificate
from sterna_protocol.round.checks import AdapterBefore, check_evidence, check_signed
from sterna_protocol.round.consensus import (
    Action,
    Consensus,
    Decided,
    Propose,
    StartTimer,
    Step,
    Verdict,
    Vote,
)
from sterna_protocol.round.effects import (
    Broadcast,
    Effect,
    FetchDelta,
    Merge,
    StoreEvidence,
    StoreOwn,
)
from sterna_protocol.round.evidence import Held, Place, hold, place_of
from sterna_protocol.round.phases import Phase, is_attesting_over, is_training_over, vote_seconds
from sterna_protocol.round.pool import Pool
from sterna_protocol.round.recovery import LOCK, LockRecord, Recovered, recovered_step
from sterna_protocol.round.setting import Setting
from sterna_protocol.round.slate import choose_entries, is_seen, match_entries, slate_id
from sterna_protocol.wire.limits import MAX_ANNOUNCEMENTS
from sterna_protocol.wire.messages import (
    Announcement,
    Attestation,
    Body,
    Certificate,
    Decision,
    Evidence,
    Kind,
    Precommit,
    Prevote,
    Proposal,
    Signed,
    SlateEntry,
    decode_frame,
    sign,
)
from sterna_protocol.wire.signing import SigningKey

MAX_RESEND_FACTOR = 8
"""A node that sees no progress repeats its messages after 1, 2, 4, 8, 8, ... vote times."""


class Blob(Enum):
    """What is known of an announced delta."""

    FETCHING = 0
    GOOD = 1
    BAD = 2


@dataclass(slots=True)
class Draft:
    """What this node wants to propose in ``attempt``; the slate is fixed once its merge is asked for."""

    attempt: int
    entries: tuple[SlateEntry, ...] | None = None
    attesters: tuple[bytes, ...] = ()
    slate: bytes = b""


class OpenRound:
    """Messages in, effects out, for one round; ``certificate`` is set when the round is decided.

    A node outside the committee follows: it keeps the messages and can recognise the decision.
    """

    def __init__(
        self,
        setting: Setting,
        key: SigningKey,
        *,
        trains: bool,
        now: float,
        adapter_before: AdapterBefore,
        verify: Verify,
        recovered: Recovered | None = None,
    ) -> None:
        self.setting = setting
        self.phase = Phase.TRAIN
        self.certificate: Certificate | None = None
        self.adapter_ready = False
        self.pool = Pool(setting.members)
        self.blobs: dict[bytes, Blob] = {}
        self._key = key
        self._trains = trains
        self._started = now
        self._attested = now
        self._adapter_before = adapter_before
        self._verify = verify
        self._is_member = key.peer in setting.members
        self._consensus = Consensus(
            order=setting.order,
            quorum=setting.quorum,
            blocking=setting.blocking,
            me=key.peer if self._is_member else None,
        )
        self._own: dict[Place, Held] = {}
        self._locks: set[int] = set()
        self._decisions: dict[bytes, Decision] = {}
        self._proposals: dict[bytes, bytes] = {}
        self._slates: dict[bytes, bytes] = {}
        self._matched: set[bytes] = set()
        self._signatures: dict[tuple[int, bytes], dict[bytes, bytes]] = {}
        self._merges: dict[bytes, bytes | None] = {}
        self._asked_for: set[tuple[int, bytes]] = set()
        self._draft: Draft | None = None
        self._timers: dict[tuple[Step, int], float] = {}
        self._resend_at = now
        self._resend_after = vote_seconds(setting.charter, 0)
        self._last_progress: object = None
        self._out: list[Effect] = []
        if recovered is not None:
            self._recover(recovered)

    # What is seen

    @property
    def attempt(self) -> int:
        return self._consensus.attempt

    @property
    def step(self) -> Step:
        return self._consensus.step

    @property
    def own_announcement(self) -> Held | None:
        return self._own.get(self._place(Kind.ANNOUNCEMENT, 0))

    def admit(self, message: Signed, frame: bytes) -> Held:
        """The message, checked; nothing is kept yet. Raises as checks.check_signed."""
        return check_signed(
            self.setting,
            self.pool,
            message,
            frame,
            pinned=self._consensus.pinned,
            wanted=lambda name: name in self.missing(),
            adapter_before=self._adapter_before,
            verify=self._verify,
        )

    def add(self, held: Held) -> None:
        """Keep a message that ``admit`` returned."""
        is_first = self.pool.at(held.place) is None
        evidence, dropped = self.pool.add(held, self._consensus.pinned)
        self._forget(dropped)
        if evidence is not None:
            self._out += [StoreEvidence(evidence), Broadcast(evidence.frame())]
        self._count(held, is_first=is_first)

    def admit_evidence(self, evidence: Evidence) -> None:
        """Return if the proof is new; nothing is kept yet. Raises as checks.check_evidence."""
        check_evidence(self.setting, self.pool, evidence, pinned=self._consensus.pinned)

    def add_evidence(self, evidence: Evidence, *, is_stored: bool = False) -> None:
        """Keep a proof that ``admit_evidence`` passed."""
        if not is_stored:
            self._out += [StoreEvidence(evidence), Broadcast(evidence.frame())]
        place = place_of(evidence)
        self._forget(self.pool.add_conflict(place, evidence, self._consensus.pinned))
        if place.kind == Kind.PREVOTE:
            self._consensus.add_two_faced(place.attempt, place.author)

    def delta_checked(self, announcement: bytes, error: str | None) -> None:
        if self.blobs.get(announcement) is Blob.FETCHING:
            self.blobs[announcement] = Blob.GOOD if error is None else Blob.BAD

    def merged(self, slate: bytes, adapter: bytes) -> None:
        if slate in self._merges:
            self._merges[slate] = adapter

    def has_merged(self, adapter: bytes) -> bool:
        """Whether this node computed that adapter in this round."""
        return adapter in self._merges.values()

    def missing(self) -> tuple[bytes, ...]:
        """Announcements that are needed but not held: of the current proposal, and of a quorum's deltas."""
        names = list(self.pool.attested(self.setting.quorum))
        decision = self._decisions.get(self._consensus.offered)
        if decision is not None:
            names += [entry.announcement for entry in decision.entries]
        return tuple(dict.fromkeys(name for name in names if name not in self.pool.announcements))

    # What is done

    def announce(self, body: Announcement) -> None:
        """Sign and send this node's one announcement of the round."""
        self._send(0, body)

    def advance(self, now: float, participants: frozenset[bytes]) -> list[Effect]:
        """Do all that can be done now. ``participants``: connected peers that mean to announce."""
        for timer in [timer for timer, due in self._timers.items() if due <= now]:
            del self._timers[timer]
            self._consensus.timeout(*timer)
        while self._turn(now, participants):
            pass
        self._resend(now)
        effects, self._out = self._out, []
        return effects

    def next_wake(self) -> float:
        """When ``advance`` may have something to do even if nothing is received."""
        charter = self.setting.charter
        times = [*self._timers.values()]
        if self._resent():
            times.append(self._resend_at)
        if self._is_member and self.phase is Phase.TRAIN:
            times.append(self._started + charter.timing.train / 1000)
        has_quorum = len(self.pool.attesters()) >= self.setting.quorum
        if self._is_member and self.phase is Phase.ATTEST and has_quorum:
            times.append(self._attested + charter.timing.attest / 1000)
        return min(times, default=float("inf"))

    def _turn(self, now: float, participants: frozenset[bytes]) -> bool:
        if self.certificate is not None:
            return False
        self._follow_phases(now, participants)
        if self._is_member:
            self._work()
        action = self._consensus.next(self._judge)
        if action is not None:
            self._act(now, action)
            return True
        return self._propose()

    def _follow_phases(self, now: float, participants: frozenset[bytes]) -> None:
        if not self._is_member:
            if self._consensus.overtaken is not None:
                self.phase = Phase.DECIDE
            elif self.pool.attesters():
                self.phase = Phase.ATTEST
            return
        charter, setting = self.setting.charter, self.setting
        is_overtaken = self._consensus.overtaken is not None
        if self.phase is Phase.TRAIN:
            if not (is_overtaken or self._is_training_over(now, participants)):
                return
            self._attest()
            self.phase, self._attested = Phase.ATTEST, now
        if self.phase is Phase.ATTEST and (
            is_overtaken
            or is_attesting_over(
                charter,
                now=now,
                attested=self._attested,
                attesters=len(self.pool.attesters()),
                members=len(setting.members),
                quorum=setting.quorum,
            )
        ):
            self.phase = Phase.DECIDE
            self._consensus.start()

    def _is_training_over(self, now: float, participants: frozenset[bytes]) -> bool:
        authors = {held.message.author: name for name, held in self.pool.announcements.items()}
        done = frozenset(a for a, name in authors.items() if self.blobs.get(name) in (Blob.GOOD, Blob.BAD))
        own = {self._key.peer} if self._trains else set()
        return is_training_over(
            self.setting.charter,
            now=now,
            started=self._started,
            expected=participants | frozenset(authors) | own,
            done=done,
            accepted=sum(self.blobs.get(name) is Blob.GOOD for name in authors.values()),
        )

    def _attest(self) -> None:
        accepted = [
            name
            for name, held in self.pool.announcements.items()
            if self.blobs.get(name) is Blob.GOOD and not self.pool.is_conflicted(held.place)
        ]
        self._send(0, Attestation(accepted=tuple(sorted(accepted)[:MAX_ANNOUNCEMENTS])))

    def _act(self, now: float, action: Action) -> None:
        match action:
            case StartTimer(step, attempt):
                self._timers[step, attempt] = now + vote_seconds(self.setting.charter, attempt)
            case Propose(attempt, choice, valid_attempt):
                if not choice:
                    self._draft = Draft(attempt)
                elif choice in self._decisions:
                    self._send(
                        attempt, Proposal(decision=self._decisions[choice], valid_attempt=valid_attempt)
                    )
            case Vote(Kind.PREVOTE, attempt, choice):
                self._send(attempt, Prevote(choice=choice))
            case Vote(_, attempt, choice):
                if choice:
                    self._store_lock(attempt, choice)
                self._send(attempt, Precommit(choice=choice))
            case Decided(attempt, choice):
                self.certificate = make_certificate(
                    self.setting.charter,
                    self._decisions[choice],
                    attempt=attempt,
                    signatures=self._signatures[attempt, choice],
                )

    # Deciding

    def _judge(self, choice: bytes, prevoted: bool) -> Verdict:
        decision = self._decisions.get(choice)
        if decision is None:
            return Verdict.WAIT
        facts = self._recompute(choice, decision)
        if facts is Verdict.NO or prevoted:
            return facts
        seen = is_seen(self.setting.charter, self.pool, self.setting.quorum, decision)
        return facts if seen is Verdict.YES else seen

    def _recompute(self, choice: bytes, decision: Decision) -> Verdict:
        """Whether this node's own merge of the slate gives the adapter that the decision names."""
        if decision.is_void:
            return Verdict.YES
        matched = self._match(choice, decision)
        if matched is not Verdict.YES:
            return matched
        merge = self._merges.get(self._slates[choice])
        if merge is None:
            return Verdict.WAIT
        # [REJECT] The adapter is what the slate merges to
        return Verdict.YES if merge == decision.adapter else Verdict.NO

    def _match(self, choice: bytes, decision: Decision) -> Verdict:
        if choice in self._matched:
            return Verdict.YES
        matched = match_entries(self.pool, decision)
        if matched is Verdict.YES:
            self._matched.add(choice)
        return matched

    def _work(self) -> None:
        """Ask for the blobs and the merge that the next step needs."""
        if self.phase is Phase.TRAIN:
            for name, held in self.pool.announcements.items():
                if name not in self.blobs:
                    self._fetch(name, held)
        choice = self._consensus.offered
        decision = self._decisions.get(choice)
        if decision is not None and self._match(choice, decision) is Verdict.YES:
            self._ask_merge(self._slates[choice], decision.entries)

    def _propose(self) -> bool:
        """Propose the draft once its merge is known; True if something was sent."""
        draft = self._draft
        if draft is None:
            return False
        if self.attempt != draft.attempt or self.step is not Step.PROPOSE:
            self._draft = None
            return False
        if draft.entries is None:
            attesters = self.pool.honest_looking_attesters()
            if len(attesters) < self.setting.quorum:
                attesters = self.pool.attesters()
            if len(attesters) < self.setting.quorum:
                return False
            draft.entries = choose_entries(self.setting.charter, self.pool, self.setting.quorum)
            draft.attesters = tuple(sorted(attesters))
            if draft.entries is None:
                return False
            draft.slate = self._slate_id(draft.entries)
        adapter: bytes | None = self.setting.adapter
        if draft.entries:
            self._ask_merge(draft.slate, draft.entries)
            adapter = self._merges.get(draft.slate)
        if adapter is None:
            return False
        decision = Decision(
            round_=self.setting.round_,
            previous=self.setting.previous,
            entries=draft.entries,
            attesters=draft.attesters,
            adapter=adapter,
        )
        self._draft = None
        self._send(draft.attempt, Proposal(decision=decision, valid_attempt=0))
        return True

    def _ask_merge(self, slate: bytes, entries: tuple[SlateEntry, ...]) -> None:
        if self._merges.get(slate) is not None:
            return
        for entry in entries:
            if self.blobs.get(entry.announcement) in (None, Blob.BAD):
                self._fetch(entry.announcement, self.pool.announcements[entry.announcement])
        held = all(self.blobs.get(entry.announcement) is Blob.GOOD for entry in entries)
        # Once per attempt: the driver may have failed to merge.
        if entries and held and self.adapter_ready and (self.attempt, slate) not in self._asked_for:
            self._asked_for.add((self.attempt, slate))
            self._merges[slate] = None
            self._out.append(Merge(self.setting.round_, slate, entries, self.setting.adapter))

    def _slate_id(self, entries: tuple[SlateEntry, ...]) -> bytes:
        return slate_id(self.setting.round_, self.setting.adapter, entries)

    def _fetch(self, name: bytes, held: Held) -> None:
        # Once per attempt: a blob that could not be had may have reached more holders since.
        if (self.attempt, name) in self._asked_for or not isinstance(held.body, Announcement):
            return
        self._asked_for.add((self.attempt, name))
        self.blobs[name] = Blob.FETCHING
        author = held.message.author
        holders = [author, *sorted(self.pool.supporters(name) - {author})]
        self._out.append(
            FetchDelta(
                announcement=name,
                delta=held.body.delta,
                author=author,
                trained_round=held.body.trained_round,
                holders=tuple(holder for holder in holders if holder != self._key.peer),
            )
        )

    # Sending

    def _send(self, attempt: int, body: Body) -> None:
        """Sign, store, send and count; what was signed for this place before is sent instead."""
        message = sign(
            self._key, swarm=self.setting.swarm, round_=self.setting.round_, attempt=attempt, body=body
        )
        held = self._own.get(hold(message).place)
        if held is None:
            held = hold(message)
            self._own[held.place] = held
            self._out.append(StoreOwn(self.setting.round_, attempt, message.kind, held.frame))
        self._out.append(Broadcast(held.frame))
        if isinstance(held.body, Announcement):
            self.blobs[held.id] = Blob.GOOD
        if self.pool.at(held.place) is None:
            self.add(held)

    def _store_lock(self, attempt: int, choice: bytes) -> None:
        if attempt in self._locks:
            return
        self._locks.add(attempt)
        frames = [self._proposals[choice]]
        for member in sorted(self._consensus.prevoters(attempt, choice)):
            place = Place(self.setting.round_, attempt, Kind.PREVOTE, member)
            held = self.pool.at(place)
            frame = self.pool.frame(place.conflict_id) or (held.frame if held is not None else None)
            if frame is not None:
                frames.append(frame)
        record = LockRecord(round_=self.setting.round_, attempt=attempt, frames=tuple(frames))
        self._out.append(StoreOwn(self.setting.round_, attempt, LOCK, record.frame()))

    def _resent(self) -> list[Held]:
        """This node's messages that the others may still be waiting for."""
        once = (Kind.ANNOUNCEMENT, Kind.ATTESTATION)
        return [
            held
            for held in self._own.values()
            if held.message.kind in once or held.message.attempt == self.attempt
        ]

    def _resend(self, now: float) -> None:
        progress = (self.phase, self.attempt, self.step, len(self._own))
        if progress != self._last_progress:
            self._last_progress = progress
            self._resend_after = vote_seconds(self.setting.charter, 0)
            self._resend_at = now + self._resend_after
        elif now >= self._resend_at and self.certificate is None:
            self._out += [Broadcast(held.frame) for held in self._resent()]
            longest = MAX_RESEND_FACTOR * vote_seconds(self.setting.charter, 0)
            self._resend_after = min(2 * self._resend_after, longest)
            self._resend_at = now + self._resend_after

    # Counting

    def _place(self, kind: Kind, attempt: int) -> Place:
        return Place(self.setting.round_, attempt, kind, self._key.peer)

    def _count(self, held: Held, *, is_first: bool) -> None:
        """Tell the consensus of a message in the pool, or of a second one for its place."""
        message, body = held.message, held.body
        if message.author not in self.setting.members:
            return
        if isinstance(body, Proposal):
            choice = body.decision.id
            self._decisions[choice] = body.decision
            self._slates[choice] = self._slate_id(body.decision.entries)
            self._proposals.setdefault(choice, held.frame)
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
        self._own = dict(recovered.own)
        self._locks = set(recovered.locks)
        for held in recovered.own.values():
            self._recount(held)
            if isinstance(held.body, Announcement):
                self.blobs[held.id] = Blob.GOOD
        for frame in recovered.support:
            stored = decode_frame(frame)
            if isinstance(stored, Signed):
                self._recount(hold(stored, frame))
            elif isinstance(stored, Evidence) and not self.pool.is_conflicted(place_of(stored)):
                self.add_evidence(stored, is_stored=True)
        if not self._is_member:
            return
        if self._place(Kind.ATTESTATION, 0) in self._own:
            self.phase = Phase.ATTEST
        step = recovered_step(recovered.own.values())
        if step is not None:
            attempt, at, locked, proposed = step
            self.phase = Phase.DECIDE
            self._consensus.restore(attempt, at, locked, proposed=proposed)

    def _recount(self, held: Held) -> None:
        if not self.pool.has(held.id):
            self.add(held)
