"""Phases of a round: when a member stops waiting for commitments, for deltas, and for attestations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from enum import IntEnum

from sterna_protocol.swarm.charter import Charter


class Phase(IntEnum):
    TRAIN = 1
    """Train, commit to an announcement."""
    REVEAL = 2
    """Announce, fetch and check what the others announce."""
    ATTEST = 3
    DECIDE = 4


def is_training_over(
    charter: Charter,
    *,
    now: float,
    ends: float,
    expected: Set[bytes],
    committed: Set[bytes],
    overtaken: float | None,
) -> bool:
    """Whether to announce: everybody known has committed, or the time is over.

    With too few commitments for a slate it waits on, however long: a void round would only age the deltas
    that are there. It follows the others one vote's time after so many have gone on that one of them is
    honest, so that commitments still under way count.

    ``ends``: when the phase is at its longest; ``expected``: authors known to train; ``committed``: authors
    who committed; ``overtaken``: when a blocking number of members was first seen to have gone on.
    """
    if overtaken is not None and now >= overtaken + vote_seconds(charter, 0):
        return True
    if len(committed) < charter.limits.min_deltas:
        return False
    return now >= ends or expected <= committed


def is_revealing_over(
    charter: Charter, *, is_late: bool, good: int, waiting: int, attesters: int, blocking: int
) -> bool:
    """Whether a member may attest: every delta that may still come was checked, or the time is over.

    With too few deltas for a slate it waits on, as in ``is_training_over``. ``good``: deltas found good;
    ``waiting``: commitments whose delta was not checked yet and may still be.
    """
    if good < charter.limits.min_deltas:
        return is_late and attesters >= blocking
    return is_late or waiting == 0


def is_attesting_over(
    members: Iterable[bytes],
    *,
    attesters: frozenset[bytes],
    quorum: int,
    is_late: bool,
    is_present: Callable[[bytes], bool],
) -> bool:
    """Whether a member may go on to decide: all have attested; or a quorum has, and everybody else is away or
    the time is over."""
    waiting = [member for member in members if member not in attesters]
    if not waiting:
        return True
    return len(attesters) >= quorum and (is_late or not any(map(is_present, waiting)))


def vote_seconds(charter: Charter, attempt: int) -> float:
    """Time of each step of an attempt."""
    return charter.timing.vote / 1000 * (1 + attempt)
