"""From the proposal to the decision: each rule, when it fires, when it must not, and what it does."""

from __future__ import annotations

import pytest

from sterna_protocol.round.consensus import NIL, Decided, Lock, Propose, StartTimer, Step
from tests.support.one_of_four import (
    PRECOMMIT,
    PREVOTE,
    A,
    B,
    C,
    V,
    W,
    add,
    consensus,
    locked_on_v,
    no,
    settle,
    started,
    votes,
    wait,
    yes,
)


def test_does_nothing_before_it_is_started():
    machine = consensus()
    machine.add_offer(0, A, V, 0)
    add(machine, PREVOTE, 0, V, A, B, C)
    assert settle(machine) == []


def test_starting_starts_the_timer_of_the_first_proposal():
    machine = consensus()
    machine.start()
    assert settle(machine) == [StartTimer(Step.PROPOSE, 0)]


def test_the_proposer_is_asked_for_a_new_decision():
    machine = consensus(me=A)
    machine.start()
    assert settle(machine) == [StartTimer(Step.PROPOSE, 0), Propose(0, NIL, 0)]


@pytest.mark.parametrize(("judge", "expected"), [(yes, V), (no, NIL)])
def test_prevotes_a_proposal_as_judged(judge, expected):
    machine = started()
    machine.add_offer(0, A, V, 0)
    assert votes(settle(machine, judge)) == [(PREVOTE, 0, expected)]
    assert machine.step is Step.PREVOTE


def test_waits_with_a_proposal_it_cannot_judge_until_the_timeout():
    machine = started()
    machine.add_offer(0, A, V, 0)
    assert settle(machine, wait) == []
    machine.timeout(Step.PROPOSE, 0)
    assert votes(settle(machine, wait)) == [(PREVOTE, 0, NIL)]


def test_prevotes_nil_when_no_proposal_comes_in_time():
    machine = started()
    machine.timeout(Step.PROPOSE, 0)
    assert votes(settle(machine)) == [(PREVOTE, 0, NIL)]


def test_of_two_proposals_the_first_counts():
    machine = started()
    machine.add_offer(0, A, V, 0)
    machine.add_offer(0, A, W, 0)
    assert votes(settle(machine)) == [(PREVOTE, 0, V)]


def test_prevotes_once_in_an_attempt():
    machine = started()
    machine.add_offer(0, A, V, 0)
    settle(machine)
    machine.timeout(Step.PROPOSE, 0)
    assert votes(settle(machine)) == []


def test_a_quorum_of_prevotes_locks_and_precommits():
    machine = started()
    machine.add_offer(0, A, V, 0)
    settle(machine)
    add(machine, PREVOTE, 0, V, A)
    assert votes(settle(machine)) == []
    add(machine, PREVOTE, 0, V, B)
    assert votes(settle(machine)) == [(PRECOMMIT, 0, V)]
    assert machine.locked == machine.valid == Lock(0, V)


def test_one_prevote_less_than_a_quorum_does_not_lock():
    machine = started()
    machine.add_offer(0, A, V, 0)
    add(machine, PREVOTE, 0, V, A)
    add(machine, PREVOTE, 0, NIL, B, C)
    settle(machine)
    assert machine.locked is None


def test_a_quorum_of_prevotes_for_an_unknown_decision_does_not_lock():
    machine = started()
    machine.timeout(Step.PROPOSE, 0)
    add(machine, PREVOTE, 0, V, A, B, C)
    assert votes(settle(machine)) == [(PREVOTE, 0, NIL)]
    machine.add_known(V)
    assert votes(settle(machine)) == [(PRECOMMIT, 0, V)]


def test_a_quorum_of_prevotes_does_not_lock_what_this_node_computed_otherwise():
    machine = started()
    machine.add_offer(0, A, V, 0)
    add(machine, PREVOTE, 0, V, A, B, C)
    actions = settle(machine, no)
    assert votes(actions) == [(PREVOTE, 0, NIL)]
    assert machine.locked is None


def test_a_lock_comes_without_own_work_where_a_quorum_did_it():
    machine = started()
    machine.add_offer(0, A, V, 0)
    machine.timeout(Step.PROPOSE, 0)
    add(machine, PREVOTE, 0, V, A, B, C)
    assert votes(settle(machine, wait)) == [(PREVOTE, 0, NIL), (PRECOMMIT, 0, V)]


def test_a_quorum_of_nil_prevotes_precommits_nil():
    machine = started()
    machine.timeout(Step.PROPOSE, 0)
    add(machine, PREVOTE, 0, NIL, A, B)
    assert votes(settle(machine)) == [(PREVOTE, 0, NIL), (PRECOMMIT, 0, NIL)]
    assert machine.locked is None


def test_a_split_quorum_of_prevotes_starts_the_timer_once_and_then_precommits_nil():
    machine = started()
    machine.add_offer(0, A, V, 0)
    add(machine, PREVOTE, 0, NIL, A, B)
    assert settle(machine)[-1] == StartTimer(Step.PREVOTE, 0)
    assert settle(machine) == []
    machine.timeout(Step.PREVOTE, 0)
    assert votes(settle(machine)) == [(PRECOMMIT, 0, NIL)]


def test_a_quorum_of_precommits_decides():
    machine = started()
    machine.add_offer(0, A, V, 0)
    add(machine, PRECOMMIT, 0, V, A, B)
    assert Decided(0, V) not in settle(machine)
    add(machine, PRECOMMIT, 0, V, C)
    assert Decided(0, V) in settle(machine)


def test_decides_once_and_then_does_nothing():
    machine = started()
    machine.add_offer(0, A, V, 0)
    add(machine, PRECOMMIT, 0, V, A, B, C)
    assert settle(machine).count(Decided(0, V)) == 1
    machine.timeout(Step.PRECOMMIT, 0)
    machine.add_offer(1, B, W, 0)
    assert votes(settle(machine)) == []


def test_precommits_of_different_attempts_do_not_add_up():
    machine = started()
    machine.add_offer(0, A, V, 0)
    add(machine, PRECOMMIT, 0, V, A, B)
    add(machine, PRECOMMIT, 1, V, C)
    assert machine.decided is None
    assert all(not isinstance(action, Decided) for action in settle(machine))


def test_an_earlier_attempt_can_still_decide():
    machine = locked_on_v()
    add(machine, PRECOMMIT, 0, V, A, B)
    assert Decided(0, V) in settle(machine)


def test_nil_is_never_decided():
    machine = started()
    add(machine, PRECOMMIT, 0, NIL, A, B, C)
    assert all(not isinstance(action, Decided) for action in settle(machine))


def test_a_bystander_decides_but_never_votes():
    machine = consensus(me=None)
    machine.add_offer(0, A, V, 0)
    add(machine, PREVOTE, 0, V, A, B, C)
    assert settle(machine) == []
    add(machine, PRECOMMIT, 0, V, A, B, C)
    assert settle(machine) == [Decided(0, V)]


def test_a_two_faced_prevote_counts_for_every_choice():
    machine = started()
    machine.add_offer(0, A, V, 0)
    add(machine, PREVOTE, 0, V, A)
    add(machine, PREVOTE, 0, NIL, B)
    settle(machine)
    assert machine.locked is None
    machine.add_two_faced(0, B)
    settle(machine)
    assert machine.locked == Lock(0, V)


def test_a_two_faced_member_is_counted_once():
    machine = started()
    machine.add_offer(0, A, V, 0)
    add(machine, PREVOTE, 0, V, B)
    add(machine, PREVOTE, 0, NIL, B)
    machine.add_two_faced(0, B)
    settle(machine)
    assert machine.locked is None
    assert StartTimer(Step.PREVOTE, 0) not in settle(machine)


def test_forgotten_votes_do_not_count():
    machine = started()
    machine.add_offer(0, A, V, 0)
    add(machine, PRECOMMIT, 0, V, A, B)
    machine.forget(PRECOMMIT, 0, A)
    add(machine, PRECOMMIT, 0, V, C)
    assert all(not isinstance(action, Decided) for action in settle(machine))
