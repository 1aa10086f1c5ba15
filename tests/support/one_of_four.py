"""The consensus of one member of four, D, and what the others tell it."""

from __future__ import annotations

from sterna_protocol.round.consensus import Action, Consensus, Lock, Step, Verdict, Vote
from sterna_protocol.wire.messages import Kind

A, B, C, D = (letter * 32 for letter in (b"a", b"b", b"c", b"d"))
ORDER = (A, B, C, D)
V, W = b"v" * 32, b"w" * 32
PREVOTE, PRECOMMIT = Kind.PREVOTE, Kind.PRECOMMIT


def consensus(me: bytes | None = D) -> Consensus:
    """Four members, three decide; A proposes in attempt 0, B in 1, C in 2, D in 3."""
    return Consensus(order=ORDER, quorum=3, blocking=2, me=me)


def yes(choice: bytes, prevoted: bool) -> Verdict:
    return Verdict.YES


def no(choice: bytes, prevoted: bool) -> Verdict:
    return Verdict.NO


def wait(choice: bytes, prevoted: bool) -> Verdict:
    return Verdict.WAIT


def settle(machine: Consensus, judge=yes) -> list[Action]:
    """All that it does now; its own votes are counted, as the node does."""
    actions: list[Action] = []
    while (action := machine.next(judge)) is not None:
        actions.append(action)
        if isinstance(action, Vote):
            machine.add_vote(action.kind, action.attempt, D, action.choice)
    return actions


def votes(actions: list[Action]) -> list[tuple[Kind, int, bytes]]:
    return [(a.kind, a.attempt, a.choice) for a in actions if isinstance(a, Vote)]


def add(machine: Consensus, kind: Kind, attempt: int, choice: bytes, *authors: bytes) -> None:
    for author in authors:
        machine.add_vote(kind, attempt, author, choice)


def started(judge=yes, **offer: object) -> Consensus:
    machine = consensus()
    machine.start()
    settle(machine, judge)
    return machine


def locked_on_v(attempt: int = 0) -> Consensus:
    """D, locked on V in attempt 0, in attempt 1 without a proposal."""
    machine = started()
    machine.add_offer(0, A, V, 0)
    add(machine, PREVOTE, 0, V, A, B)
    settle(machine)
    assert machine.locked == Lock(0, V)
    machine.timeout(Step.PRECOMMIT, 0)
    settle(machine)
    assert (machine.attempt, machine.step) == (1, Step.PROPOSE)
    return machine
