"""Phases of a round: when a member stops waiting for commitments, for deltas, and for attestations."""

from __future__ import annotations

from collections.abc import Set
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
    started: float,
    expected: Set[bytes],
    committed: Set[bytes],
    overtaken: float | None,
) -> bool:
    """Whether to announce: everybody known has committed, or the charter's time is over.

    With too few commitments for a slate it waits on, however long: a void round would only age the deltas
    that are there. It follows the others one vote's time after so many have gone on that one of them is
    honest, so that commitments still under way count.

    ``expected``: authors known to train; ``committed``: authors who committed; ``overtaken``: when a blocking
    number of members was first seen to have gone on.
    """
    if overtaken is not None and now >= overtaken + vote_seconds(charter, 0):
        return True
    if len(committed) < charter.limits.min_deltas:
        return False
    return now >= started + charter.timing.train / 1000 or expected <= committed


def is_revealing_over(
    charter: Charter, *, is_late: bool, good: int, waiting: int, attesters: int, blocking: int
) -> bool:
    """Whether a member may attest: every delta committed to was checked, or the charter's time is over.

    With too few deltas for a slate it waits on, as in ``is_training_over``. ``good``: deltas found good;
    ``waiting``: commitments whose delta was not checked yet.
    """
    if good < charter.limits.min_deltas:
        return is_late and attesters >= blocking
    return is_late or waiting == 0


def is_attesting_over(
    charter: Charter, *, now: float, attested: float, attesters: int, members: int, quorum: int
) -> bool:
    """Whether a member may go on to decide: all have attested, or a quorum has and the time is over."""
    if attesters == members:
        return True
    return attesters >= quorum and now >= attested + attest_seconds(charter)


def attest_seconds(charter: Charter) -> float:
    """Longest time to fetch and check, and once more to hear the others' attestations."""
    return charter.timing.attest / 1000


def vote_seconds(charter: Charter, attempt: int) -> float:
    """Time of each step of an attempt."""
    return charter.timing.vote / 1000 * (1 + attempt)
