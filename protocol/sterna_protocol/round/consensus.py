"""Single-shot Tendermint (arXiv:1807.04938) for one round: what to vote, when to lock, when to go on.

Pure: proposals, votes, verdicts and timeouts go in, the next thing to do comes out. A choice is the id of a
decision, or empty for "none in this attempt".

    IDLE --start--> PROPOSE --vote--> PREVOTE --vote--> PRECOMMIT --timeout--> PROPOSE of the next attempt
                                                                  --quorum--> decided
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, IntEnum

from sterna_protocol.wire.messages import Kind

NIL = b""


class Step(IntEnum):
    IDLE = 0
    PROPOSE = 1
    PREVOTE = 2
    PRECOMMIT = 3


class Verdict(Enum):
    """What this node makes of a decision. WAIT may still become YES or NO; the others are for good."""

    WAIT = 0
    YES = 1
    NO = 2


Judge = Callable[[bytes, bool], Verdict]
"""(choice, prevoted): the verdict on a known decision. ``prevoted``: a quorum already prevoted it, which
proves what the members saw, so that only what can be recomputed is left to judge."""

IsAway = Callable[[bytes], bool]


@dataclass(frozen=True, slots=True)
class Propose:
    """Propose now: ``choice`` again, justified by ``valid_attempt``, or a new decision if it is NIL."""

    attempt: int
    choice: bytes
    valid_attempt: int


@dataclass(frozen=True, slots=True)
class Vote:
    kind: Kind
    attempt: int
    choice: bytes


@dataclass(frozen=True, slots=True)
class StartTimer:
    """Call ``timeout(step, attempt)`` after the step's time."""

    step: Step
    attempt: int


@dataclass(frozen=True, slots=True)
class Decided:
    attempt: int
    choice: bytes


Action = Propose | Vote | StartTimer | Decided


@dataclass(frozen=True, slots=True)
class Lock:
    """A decision and the attempt in which a quorum prevoted it."""

    attempt: int
    choice: bytes


@dataclass(frozen=True, slots=True)
class Offer:
    choice: bytes
    valid_attempt: int


class Consensus:
    """The votes of one round as one member (``me``) sees them, or a bystander (``me`` None).

    ``order`` is the members in the order in which they propose, ``quorum`` and ``blocking`` as in
    swarm/committee.py. Only members' messages may be added; each is added once.
    """

    def __init__(self, *, order: tuple[bytes, ...], quorum: int, blocking: int, me: bytes | None) -> None:
        self.attempt = -1
        self.step = Step.IDLE
        self.locked: Lock | None = None
        self.valid: Lock | None = None
        self.decided: Decided | None = None
        self._order = order
        self._quorum = quorum
        self._blocking = blocking
        self._me = me
        self._known: set[bytes] = set()
        self._offers: dict[int, Offer] = {}
        self._votes: dict[tuple[Kind, int], dict[bytes, set[bytes]]] = {}
        self._two_faced: dict[int, set[bytes]] = {}
        self._reached: dict[bytes, int] = {}
        self._timed: set[tuple[Step, int]] = set()
        self._due: deque[Action] = deque()

    # What is seen

    def add_offer(self, attempt: int, author: bytes, choice: bytes, valid_attempt: int) -> None:
        """The proposal of ``attempt``; of two different ones the first counts."""
        self._offers.setdefault(attempt, Offer(choice, valid_attempt))
        self._known.add(choice)
        self._reach(author, attempt)

    def add_known(self, choice: bytes) -> None:
        """The decision behind ``choice`` is at hand."""
        self._known.add(choice)

    def add_vote(self, kind: Kind, attempt: int, author: bytes, choice: bytes) -> None:
        self._votes.setdefault((kind, attempt), {}).setdefault(choice, set()).add(author)
        self._reach(author, attempt)

    def add_two_faced(self, attempt: int, author: bytes) -> None:
        """``author`` prevoted two ways in ``attempt``: it counts for every choice.

        Other nodes may have been shown any of its votes. Counting it everywhere lets their view become
        ours, and is safe: two quorums still share an honest member.
        """
        self._two_faced.setdefault(attempt, set()).add(author)
        self._reach(author, attempt)

    def forget(self, kind: Kind, attempt: int, author: bytes) -> None:
        """Drop an old vote, to bound memory."""
        choices = self._votes.get((kind, attempt), {})
        for choice in [choice for choice, authors in choices.items() if author in authors]:
            choices[choice].discard(author)
            if not choices[choice]:
                del choices[choice]
        if not choices:
            self._votes.pop((kind, attempt), None)

    def forget_known(self, choice: bytes) -> None:
        """The decision behind ``choice`` is no longer at hand."""
        self._known.discard(choice)

    # What is done

    def start(self, attempt: int = 0) -> None:
        """Leave IDLE."""
        if self.step is Step.IDLE:
            self._enter(attempt)

    def restore(self, attempt: int, step: Step, locked: Lock | None, *, proposed: bool) -> None:
        """Go on after a restart where the messages this member had signed say it stood."""
        self.locked = self.valid = locked
        if step is Step.PROPOSE and not proposed:
            self._enter(attempt)
            return
        self.attempt, self.step = attempt, step
        if step is Step.PROPOSE:
            self._due.append(StartTimer(step, attempt))

    def timeout(self, step: Step, attempt: int) -> None:
        if attempt != self.attempt:
            return
        if step is Step.PROPOSE and self.step is Step.PROPOSE:
            self._vote(Kind.PREVOTE, NIL)
        elif step is Step.PREVOTE and self.step is Step.PREVOTE:
            self._vote(Kind.PRECOMMIT, NIL)
        elif step is Step.PRECOMMIT:
            self._enter(attempt + 1)

    @property
    def needed(self) -> set[bytes]:
        """Choices whose decisions must stay at hand."""
        return {self.offered} | {lock.choice for lock in (self.locked, self.valid) if lock is not None}

    @property
    def offered(self) -> bytes:
        """What the current attempt's proposal offers, NIL if there is none yet."""
        offer = self._offers.get(self.attempt)
        return NIL if offer is None else offer.choice

    @property
    def overtaken(self) -> int | None:
        """A later attempt that some honest member has reached, if any."""
        reached = sorted(self._reached.values(), reverse=True)
        if len(reached) < self._blocking or reached[self._blocking - 1] <= self.attempt:
            return None
        return reached[self._blocking - 1]

    @property
    def pinned(self) -> set[int]:
        """Earlier attempts whose prevotes still justify something."""
        pinned = {lock.attempt for lock in (self.locked, self.valid) if lock is not None}
        offer = self._offers.get(self.attempt)
        if offer is not None and offer.valid_attempt:
            pinned.add(offer.valid_attempt - 1)
        return pinned

    def prevoters(self, attempt: int, choice: bytes) -> set[bytes]:
        """Members whose prevote counts for ``choice``."""
        voted = self._votes.get((Kind.PREVOTE, attempt), {}).get(choice, set())
        return voted | self._two_faced.get(attempt, set())

    def next(self, judge: Judge, is_away: IsAway = lambda member: False) -> Action | None:
        """The next thing to do, None if there is nothing until something new is seen.

        ``is_away``: says of a member that nothing more is expected of it now.
        """
        if self.decided is None and (decided := self._find_decided()) is not None:
            self.decided = decided
            return decided
        if self._due:
            return self._due.popleft()
        if self.decided is not None or self.step is Step.IDLE or self._me is None:
            return None
        if (ahead := self.overtaken) is not None:
            self._enter(ahead)
        elif self.step is Step.PROPOSE:
            self._consider_offer(judge)
        else:
            self._consider_votes(judge)
        if not self._due:
            self._stop_waiting(is_away)
        return self._due.popleft() if self._due else None

    # Rules; the numbers are the lines of Algorithm 1 in the paper

    def _find_decided(self) -> Decided | None:  # 49
        for (kind, attempt), choices in self._votes.items():
            if kind is not Kind.PRECOMMIT:
                continue
            for choice, authors in choices.items():
                if choice and choice in self._known and len(authors) >= self._quorum:
                    return Decided(attempt, choice)
        return None

    def _consider_offer(self, judge: Judge) -> None:  # 22, 28
        offer = self._offers.get(self.attempt)
        if offer is None:
            return
        source = offer.valid_attempt - 1
        prevoted = source >= 0 and self._is_prevoted(source, offer.choice)
        free = self.locked is None or self.locked.choice == offer.choice
        if not free and self.locked is not None and self.locked.attempt <= source:
            if not prevoted:
                return
            free = True
        prevoted |= any(lock.choice == offer.choice for lock in (self.locked, self.valid) if lock is not None)
        verdict = judge(offer.choice, prevoted) if free else Verdict.NO
        if verdict is not Verdict.WAIT:
            self._vote(Kind.PREVOTE, offer.choice if verdict is Verdict.YES else NIL)

    def _consider_votes(self, judge: Judge) -> None:
        choice = self._prevoted_choice(judge)
        if choice:  # 36
            self.valid = Lock(self.attempt, choice)
        if self.step is Step.PREVOTE:
            if choice:
                self.locked = Lock(self.attempt, choice)
                self._vote(Kind.PRECOMMIT, choice)
            elif self._is_prevoted(self.attempt, NIL):  # 44
                self._vote(Kind.PRECOMMIT, NIL)
            elif len(self._voters(Kind.PREVOTE)) >= self._quorum:  # 34
                self._time(Step.PREVOTE)
        if len(self._voters(Kind.PRECOMMIT)) >= self._quorum:  # 47
            self._time(Step.PRECOMMIT)

    def _stop_waiting(self, is_away: IsAway) -> None:
        """End a step before its time if nobody is there who could still change what it ends with.

        Timeouts only matter for progress, so that a guess that was wrong costs an attempt and nothing else.
        Once every member has proposed in vain, a vote that decided nothing takes its time: too many liars, or
        a delta that nobody can fetch, would otherwise turn attempts as fast as messages travel, for ever.
        """
        if self.step is Step.PROPOSE:
            proposer = self._order[self.attempt % len(self._order)]
            if self.attempt not in self._offers and is_away(proposer):
                self.timeout(Step.PROPOSE, self.attempt)
            return
        for step, kind in ((Step.PREVOTE, Kind.PREVOTE), (Step.PRECOMMIT, Kind.PRECOMMIT)):
            if step is Step.PRECOMMIT and self.attempt >= len(self._order):
                return
            if (step, self.attempt) in self._timed and not self._has_choice(kind):
                voters = self._voters(kind)
                if all(member in voters or is_away(member) for member in self._order):
                    self.timeout(step, self.attempt)

    def _has_choice(self, kind: Kind) -> bool:
        """Whether a quorum voted for one decision, whose content may still be under way."""
        two_faced = self._two_faced.get(self.attempt, set()) if kind is Kind.PREVOTE else set()
        votes = self._votes.get((kind, self.attempt), {})
        return any(choice and len(authors | two_faced) >= self._quorum for choice, authors in votes.items())

    def _prevoted_choice(self, judge: Judge) -> bytes:
        for choice in self._votes.get((Kind.PREVOTE, self.attempt), {}):
            known = choice and choice in self._known
            if known and self._is_prevoted(self.attempt, choice) and judge(choice, True) is not Verdict.NO:
                return choice
        return NIL

    def _is_prevoted(self, attempt: int, choice: bytes) -> bool:
        return len(self.prevoters(attempt, choice)) >= self._quorum

    def _voters(self, kind: Kind) -> set[bytes]:
        voters: set[bytes] = set()
        voters.update(*self._votes.get((kind, self.attempt), {}).values())
        if kind is Kind.PREVOTE:
            voters |= self._two_faced.get(self.attempt, set())
        return voters

    def _enter(self, attempt: int) -> None:  # 11
        self.attempt, self.step = attempt, Step.PROPOSE
        self._due.append(StartTimer(Step.PROPOSE, attempt))
        if self._order[attempt % len(self._order)] == self._me:
            valid = self.valid
            self._due.append(
                Propose(attempt, NIL, 0)
                if valid is None
                else Propose(attempt, valid.choice, valid.attempt + 1)
            )

    def _vote(self, kind: Kind, choice: bytes) -> None:
        self.step = Step.PREVOTE if kind is Kind.PREVOTE else Step.PRECOMMIT
        self._due.append(Vote(kind, self.attempt, choice))

    def _time(self, step: Step) -> None:
        if (step, self.attempt) not in self._timed:
            self._timed.add((step, self.attempt))
            self._due.append(StartTimer(step, self.attempt))

    def _reach(self, author: bytes, attempt: int) -> None:
        if author != self._me:
            self._reached[author] = max(attempt, self._reached.get(author, -1))
