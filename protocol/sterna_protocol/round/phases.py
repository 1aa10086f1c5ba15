"""Phases of a round: when a member stops waiting for deltas, and when for attestations."""

from __future__ import annotations

from enum import IntEnum

from sterna_protocol.swarm.charter import Charter


class Phase(IntEnum):
    TRAIN = 1
    ATTEST = 2
    DECIDE = 3


def is_training_over(
    charter: Charter,
    *,
    now: float,
    started: float,
    expected: frozenset[bytes],
    done: frozenset[bytes],
    accepted: int,
    attesters: int,
    blocking: int,
) -> bool:
    """Whether a member may attest: nothing more can come, or the charter's time is over.

    With too few deltas for a slate it waits on, however long: a void round would only age the deltas that
    are there. It follows once so many have attested that one of them is honest and saw enough.

    ``expected``: authors known to train; ``done``: authors whose announced delta was checked, whatever came
    of it; ``accepted``: deltas that were found good.
    """
    is_late = now >= started + charter.timing.train / 1000
    if accepted < charter.limits.min_deltas:
        return is_late and attesters >= blocking
    return is_late or expected <= done


def is_attesting_over(
    charter: Charter, *, now: float, attested: float, attesters: int, members: int, quorum: int
) -> bool:
    """Whether a member may go on to decide: all have attested, or a quorum has and the time is over."""
    if attesters == members:
        return True
    return attesters >= quorum and now >= attested + charter.timing.attest / 1000


def vote_seconds(charter: Charter, attempt: int) -> float:
    """Time of each step of an attempt."""
    return charter.timing.vote / 1000 * (1 + attempt)
