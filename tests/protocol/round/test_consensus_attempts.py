"""When one attempt ends and the next begins, and for whom nobody waits."""

from __future__ import annotations

import pytest

from sterna_protocol.round.consensus import NIL, StartTimer, Step, Vote
from tests.support.one_of_four import (
    ORDER,
    PRECOMMIT,
    PREVOTE,
    A,
    B,
    C,
    D,
    V,
    add,
    consensus,
    locked_on_v,
    settle,
    started,
    votes,
    wait,
    yes,
)


def test_a_quorum_of_any_precommits_starts_the_timer_of_the_next_attempt():
    machine = started()
    add(machine, PRECOMMIT, 0, V, A)
    add(machine, PRECOMMIT, 0, NIL, B, C)
    machine.timeout(Step.PROPOSE, 0)
    assert StartTimer(Step.PRECOMMIT, 0) in settle(machine)
    machine.timeout(Step.PRECOMMIT, 0)
    assert settle(machine) == [StartTimer(Step.PROPOSE, 1)]


def test_skips_to_an_attempt_that_more_members_reached_than_can_lie():
    machine = started()
    add(machine, PREVOTE, 7, NIL, A)
    assert settle(machine) == []
    add(machine, PREVOTE, 5, NIL, B)
    assert settle(machine) == [StartTimer(Step.PROPOSE, 5)]
    assert machine.attempt == 5


def test_does_not_skip_backwards():
    machine = locked_on_v()
    add(machine, PREVOTE, 0, NIL, A, B, C)
    settle(machine)
    assert machine.attempt == 1


def test_its_own_messages_do_not_make_it_skip():
    machine = started()
    add(machine, PREVOTE, 5, NIL, A, D)
    settle(machine)
    assert machine.attempt == 0


@pytest.mark.parametrize("step", [Step.PROPOSE, Step.PREVOTE, Step.PRECOMMIT])
def test_a_timeout_of_an_earlier_attempt_changes_nothing(step):
    machine = locked_on_v()
    before = (machine.attempt, machine.step, machine.locked)
    machine.timeout(step, 0)
    assert settle(machine) == []
    assert (machine.attempt, machine.step, machine.locked) == before


def away(*members: bytes):
    return lambda member: member in members


def test_does_not_wait_for_a_proposer_that_is_away():
    machine = consensus()
    machine.start()
    assert votes(settle(machine)) == []
    action = machine.next(yes, away(A))
    assert action == Vote(PREVOTE, 0, NIL)


def test_a_proposal_of_somebody_who_is_away_counts():
    machine = consensus()
    machine.start()
    settle(machine)
    machine.add_offer(0, A, V, 0)
    assert machine.next(wait, away(A)) is None
    assert machine.next(yes, away(A)) == Vote(PREVOTE, 0, V)


def test_a_step_ends_when_all_who_are_there_have_voted_for_different_things():
    machine = consensus()
    machine.start()
    settle(machine)
    machine.add_offer(0, A, V, 0)
    assert votes(settle(machine)) == [(PREVOTE, 0, V)]
    add(machine, PREVOTE, 0, NIL, A, B)
    assert settle(machine) == [StartTimer(Step.PREVOTE, 0)]
    assert machine.next(yes, away(C)) == Vote(PRECOMMIT, 0, NIL)


def test_when_all_who_are_there_decided_nothing_the_next_attempt_begins():
    machine = consensus()
    machine.start()
    machine.timeout(Step.PROPOSE, 0)
    settle(machine)
    add(machine, PREVOTE, 0, NIL, A, B)
    assert votes(settle(machine)) == [(PRECOMMIT, 0, NIL)]
    add(machine, PRECOMMIT, 0, NIL, A, B)
    assert settle(machine) == [StartTimer(Step.PRECOMMIT, 0)]
    assert machine.next(yes, away(C)) == StartTimer(Step.PROPOSE, 1)
    assert machine.attempt == 1


def test_once_all_have_proposed_in_vain_an_attempt_that_decides_nothing_takes_its_time():
    machine = consensus()
    machine.start()
    for attempt in range(len(ORDER) + 1):
        machine.timeout(Step.PROPOSE, attempt)
        settle(machine)
        add(machine, PREVOTE, attempt, NIL, A, B, C)
        add(machine, PRECOMMIT, attempt, NIL, A, B, C)
        settle(machine)
        assert machine.attempt == min(attempt + 1, len(ORDER))
    machine.timeout(Step.PRECOMMIT, len(ORDER))
    assert machine.attempt == len(ORDER) + 1


@pytest.mark.parametrize("kind", [PREVOTE, PRECOMMIT])
def test_a_decision_that_a_quorum_chose_is_waited_for_until_its_content_comes(kind):
    machine = consensus()
    machine.start()
    machine.timeout(Step.PROPOSE, 0)
    settle(machine)
    add(machine, kind, 0, V, A, B, C)
    if kind is PRECOMMIT:
        add(machine, PREVOTE, 0, NIL, A, B)
    settle(machine)
    assert machine.next(yes, away()) is None
    assert machine.attempt == 0
