"""Pace: how long a phase may last, learned from what arrived when in the last rounds.

Local: two nodes may wait for different times, and nothing that peers must agree on depends on it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from statistics import median

from sterna_protocol.round.phases import Phase
from sterna_protocol.swarm.charter import Charter

KEPT_ROUNDS = 8
"""Rounds remembered: a peer that came or left is forgotten within them."""

MIN_ARRIVALS = 8
"""Fewer say too little of the spread; the charter's longest time holds until then."""

SPREAD = 6
"""Median absolute deviations beyond the median: of bell-shaped times one in 20,000 is later."""

FLOOR_SHARE = 4
"""REVEAL, ATTEST and a vote get a quarter of the charter's time at least: gossip that was lost comes with
heads, a few seconds later, however quick the last rounds were."""


class Course:
    """One round as this node saw it: when its phases began, and when what they wait for came.

    Times are of the node's clock. What came before its phase began counts as 0 seconds.
    """

    def __init__(self) -> None:
        self._began: dict[Phase, float] = {}
        self._arrived: dict[tuple[Phase, bytes], float | None] = {}

    def begin(self, phase: Phase, now: float) -> None:
        self._began.setdefault(phase, now)

    def began(self, phase: Phase) -> float | None:
        """When ``phase`` began, None if it has not."""
        return self._began.get(phase)

    def note_arrival(self, phase: Phase, name: bytes, now: float) -> None:
        """What ``phase`` awaits of or under ``name`` is here."""
        if self._arrived.get((phase, name)) is None:
            self._arrived[phase, name] = now

    def note_late(self, phase: Phase, names: Iterable[bytes]) -> None:
        """The phase ended without these, which were awaited: they count even if they never come."""
        for name in names:
            self._arrived.setdefault((phase, name), None)

    def arrivals(self, now: float) -> list[tuple[Phase, float]]:
        """Seconds from the beginning of a phase to each arrival; what is still awaited counts as if it came
        now."""
        return [
            (phase, max(0.0, (now if at is None else at) - self._began[phase]))
            for (phase, _), at in self._arrived.items()
            if phase in self._began
        ]


class Pace:
    """Seconds of each phase: median + ``SPREAD`` deviations of past arrivals, within bounds of the charter.

    TRAIN gets ``timing.train / (1 + max_staleness)`` at least, so that whoever needs no longer than
    ``timing.train`` is never locked out: at worst its delta is merged as a stale one.
    """

    def __init__(self, charter: Charter) -> None:
        timing, limits = charter.timing, charter.limits
        self._bounds = {
            Phase.TRAIN: (timing.train / (1 + limits.max_staleness), timing.train),
            Phase.REVEAL: (timing.attest / FLOOR_SHARE, timing.attest),
            Phase.ATTEST: (timing.attest / FLOOR_SHARE, timing.attest),
            Phase.DECIDE: (timing.vote / FLOOR_SHARE, timing.vote),
        }
        self._rounds: deque[dict[Phase, list[float]]] = deque(maxlen=KEPT_ROUNDS)

    def note_round(self, course: Course, now: float) -> None:
        """A round closed that this node took part in from its beginning."""
        by_phase: dict[Phase, list[float]] = {}
        for phase, seconds in course.arrivals(now):
            by_phase.setdefault(phase, []).append(seconds)
        if by_phase:
            self._rounds.append(by_phase)

    def limits(self) -> dict[Phase, float]:
        """Longest seconds of each phase of the next round; of DECIDE: of a step of its first attempt."""
        return {phase: self._limit(phase, *bounds) for phase, bounds in self._bounds.items()}

    def _limit(self, phase: Phase, least: float, most: float) -> float:
        arrivals = [seconds for known in self._rounds for seconds in known.get(phase, ())]
        if len(arrivals) < MIN_ARRIVALS:
            return most / 1000
        middle = median(arrivals)
        spread = median(abs(seconds - middle) for seconds in arrivals)
        return min(max(middle + SPREAD * spread, least / 1000), most / 1000)
