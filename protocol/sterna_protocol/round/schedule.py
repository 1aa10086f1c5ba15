"""The schedule of an open round: which phase this node is in, and when it goes on to the next."""

from __future__ import annotations

from collections.abc import Mapping

from sterna_protocol.round.deliberation import Blob, Deliberation
from sterna_protocol.round.evidence import Held
from sterna_protocol.round.neighbours import Neighbours
from sterna_protocol.round.pace import Course
from sterna_protocol.round.phases import (
    Phase,
    is_attesting_over,
    is_revealing_over,
    is_training_over,
    vote_seconds,
)
from sterna_protocol.round.pool import Pool
from sterna_protocol.round.setting import Setting
from sterna_protocol.wire.messages import Kind, Prevote

ARRIVES_IN: dict[int, Phase] = {
    Kind.COMMITMENT: Phase.TRAIN,
    Kind.ATTESTATION: Phase.ATTEST,
    Kind.PREVOTE: Phase.DECIDE,
}
"""The phase that waits for a kind of message; REVEAL waits for deltas."""


class Schedule:
    """Each phase ends when nothing more can come from anybody who is there, or when its time is over.

    ``course`` is what came when. ``committed`` is announcement -> author of the commitments held when TRAIN
    ended: whose deltas a member checks.

    Args:
        limits: longest seconds of each phase (``Pace.limits``).
        neighbours: who is there.
    """

    def __init__(
        self,
        setting: Setting,
        pool: Pool,
        deliberation: Deliberation,
        *,
        me: bytes,
        trains: bool,
        now: float,
        limits: Mapping[Phase, float],
        neighbours: Neighbours,
    ) -> None:
        self.phase = Phase.TRAIN
        self.course = Course()
        self.committed: dict[bytes, bytes] = {}
        self._setting = setting
        self._pool = pool
        self._deliberation = deliberation
        self._me = me
        self._trains = trains
        self._limits = limits
        self._neighbours = neighbours
        self._overtaken_at: float | None = None
        self.course.begin(Phase.TRAIN, now)

    def enter(self, phase: Phase, now: float) -> Phase:
        self.phase = phase
        self.course.begin(phase, now)
        return phase

    def note_arrival(self, now: float, held: Held) -> None:
        """A message is here, the first of its place."""
        phase, author = ARRIVES_IN.get(held.message.kind), held.message.author
        if phase is None or (phase is not Phase.TRAIN and author == self._me):
            return
        # A prevote says how long a proposal and its merge take; one for nothing, how long a timer is.
        if isinstance(held.body, Prevote) and (held.message.attempt or not held.body.choice):
            return
        self.course.note_arrival(phase, author, now)

    def follow(self, now: float, *, is_overtaken: bool) -> Phase | None:
        """The phase that begins now, None if this one goes on. ``is_overtaken``: others already decide."""
        if self.phase is Phase.TRAIN and (is_overtaken or self._is_training_over(now)):
            self.committed = self._commitments()
            return self.enter(Phase.REVEAL, now)
        if self._me not in self._setting.members:
            if is_overtaken and self.phase is not Phase.DECIDE:
                return self.enter(Phase.DECIDE, now)
            return None
        if self.phase is Phase.REVEAL and (is_overtaken or self._is_revealing_over(now)):
            return self.enter(Phase.ATTEST, now)
        if self.phase is Phase.ATTEST and (is_overtaken or self._is_attesting_over(now)):
            return self.enter(Phase.DECIDE, now)
        return None

    def next_end(self, now: float) -> float:
        """When the phase may end even if nothing is received; once its time is over, only by what is."""
        end = float("inf") if self.phase is Phase.DECIDE else self._end(self.phase)
        if end <= now:
            end = float("inf")
        if self.phase is Phase.TRAIN and self._overtaken_at is not None:
            other = self._overtaken_at + vote_seconds(self._setting.charter, 0)
            if now < other < end:
                return other
        return end

    def step_seconds(self, attempt: int) -> float:
        """Time of a step of ``attempt``: as usual in the first, the charter's once something went wrong."""
        return vote_seconds(self._setting.charter, attempt) if attempt else self._limits[Phase.DECIDE]

    def _end(self, phase: Phase) -> float:
        began = self.course.began(phase)
        return float("inf") if began is None else began + self._limits[phase]

    def _commitments(self) -> dict[bytes, bytes]:
        return {name: author for author, name in self._pool.commitments().items()}

    def _is_training_over(self, now: float) -> bool:
        if self._overtaken_at is None:
            announced = self._pool.authors().intersection(self._setting.members)
            if len(self._pool.attesters() | announced) >= self._setting.blocking:
                self._overtaken_at = now
        trainers = self._neighbours.trainers | ({self._me} if self._trains else set())
        # A stranger in a swarm of invited peers says in vain that it trains.
        expected = frozenset(filter(self._deliberation.may_announce, trainers))
        committed = self._pool.commitments().keys()
        ends = self._end(Phase.TRAIN)
        is_over = is_training_over(
            self._setting.charter,
            now=now,
            ends=ends,
            expected=expected,
            committed=committed,
            overtaken=self._overtaken_at,
        )
        if is_over and now >= ends:
            self.course.note_late(Phase.TRAIN, expected.difference(committed))
        return is_over

    def _is_revealing_over(self, now: float) -> bool:
        charter, is_late = self._setting.charter, now >= self._end(Phase.REVEAL)
        good = sum(self._deliberation.blobs.get(name) is Blob.GOOD for name in self.committed)
        if is_late and good < charter.limits.min_deltas:
            # Better a delta whose author came late than no slate.
            self.committed |= self._commitments()
        waiting = [name for name, author in self.committed.items() if self._may_come(name, author)]
        is_over = is_revealing_over(
            charter,
            is_late=is_late,
            good=good,
            waiting=len(waiting),
            attesters=len(self._pool.attesters()),
            blocking=self._setting.blocking,
        )
        if is_over and is_late:
            self.course.note_late(Phase.REVEAL, waiting)
        return is_over

    def _may_come(self, name: bytes, author: bytes) -> bool:
        """Whether a delta that was committed to is unchecked, and announced or its author there to do so."""
        if self._deliberation.blobs.get(name) in (Blob.GOOD, Blob.BAD):
            return False
        return name in self._pool.announcements or self._neighbours.is_present(author)

    def _is_attesting_over(self, now: float) -> bool:
        attesters, is_late = self._pool.attesters(), now >= self._end(Phase.ATTEST)
        is_over = is_attesting_over(
            self._setting.members,
            attesters=attesters,
            quorum=self._setting.quorum,
            is_late=is_late,
            is_present=self._neighbours.is_present,
        )
        if is_over and is_late:
            late = set(self._setting.members) - attesters
            self.course.note_late(Phase.ATTEST, filter(self._neighbours.is_present, late))
        return is_over
