"""What a lock forbids, what it yields to, and that a restart keeps it."""

from __future__ import annotations

import pytest

from sterna_protocol.round.consensus import NIL, Consensus, Lock, Propose, StartTimer, Step, Verdict
from tests.support.one_of_four import (
    PRECOMMIT,
    PREVOTE,
    A,
    B,
    C,
    D,
    V,
    W,
    add,
    consensus,
    locked_on_v,
    settle,
    started,
    votes,
)


def test_a_locked_member_prevotes_nil_for_another_decision():
    machine = locked_on_v()
    machine.add_offer(1, B, W, 0)
    assert votes(settle(machine)) == [(PREVOTE, 1, NIL)]


def test_a_locked_member_prevotes_what_it_is_locked_on():
    machine = locked_on_v()
    machine.add_offer(1, B, V, 0)
    assert votes(settle(machine)) == [(PREVOTE, 1, V)]


def test_a_locked_member_proposes_what_it_is_locked_on():
    machine = locked_on_v()
    machine.timeout(Step.PRECOMMIT, 1)
    machine.timeout(Step.PRECOMMIT, 2)
    assert Propose(3, V, 1) in settle(machine)


def lock_in_attempt_1() -> Consensus:
    """D, locked on V in attempt 1, in attempt 3 where it does not propose (order rotated)."""
    machine = Consensus(order=(D, A, B, C), quorum=3, blocking=2, me=D)
    machine.restore(1, Step.PRECOMMIT, Lock(1, V), proposed=False)
    machine.add_known(V)
    machine.timeout(Step.PRECOMMIT, 1)
    machine.timeout(Step.PRECOMMIT, 2)
    settle(machine)
    assert (machine.attempt, machine.step) == (3, Step.PROPOSE)
    return machine


@pytest.mark.parametrize(("source", "prevote"), [(0, NIL), (1, W), (2, W)])
def test_a_lock_yields_to_a_quorum_of_prevotes_of_the_same_or_a_later_attempt(source, prevote):
    machine = lock_in_attempt_1()
    machine.add_offer(3, C, W, source + 1)
    add(machine, PREVOTE, source, W, A, B, C)
    assert votes(settle(machine)) == [(PREVOTE, 3, prevote)]


def test_a_locked_member_waits_for_the_prevotes_that_a_proposal_claims():
    machine = lock_in_attempt_1()
    machine.add_offer(3, C, W, 3)
    add(machine, PREVOTE, 2, W, A, B)
    assert votes(settle(machine)) == []
    machine.timeout(Step.PROPOSE, 3)
    assert votes(settle(machine)) == [(PREVOTE, 3, NIL)]


def test_an_unlocked_member_needs_no_prevotes_that_a_proposal_claims_if_it_is_convinced_itself():
    machine = started()
    machine.timeout(Step.PRECOMMIT, 0)
    machine.add_offer(1, B, V, 1)
    assert votes(settle(machine)) == [(PREVOTE, 1, V)]


def test_shown_a_quorum_of_prevotes_only_what_can_be_recomputed_is_judged():
    seen = []

    def judge(choice, prevoted):
        seen.append(prevoted)
        return Verdict.YES

    machine = started()
    machine.timeout(Step.PRECOMMIT, 0)
    machine.add_offer(1, B, V, 1)
    add(machine, PREVOTE, 0, V, A, B, C)
    settle(machine, judge)
    assert seen[0] is True


def test_a_later_lock_replaces_an_earlier_one():
    machine = lock_in_attempt_1()
    machine.add_offer(3, C, W, 3)
    add(machine, PREVOTE, 2, W, A, B, C)
    add(machine, PREVOTE, 3, W, A, B)
    settle(machine)
    assert machine.locked == Lock(3, W)


def test_prevotes_seen_after_precommitting_nil_make_a_decision_valid_but_not_locked():
    machine = started()
    machine.add_offer(0, A, V, 0)
    machine.timeout(Step.PROPOSE, 0)
    add(machine, PREVOTE, 0, NIL, A, B)
    settle(machine)
    assert machine.step is Step.PRECOMMIT
    machine.add_two_faced(0, A)
    machine.add_two_faced(0, B)
    add(machine, PREVOTE, 0, V, C)
    settle(machine)
    assert machine.locked is None
    assert machine.valid == Lock(0, V)


def test_restored_it_goes_on_where_it_stood():
    machine = consensus()
    machine.restore(4, Step.PREVOTE, Lock(2, V), proposed=False)
    assert settle(machine) == []
    machine.timeout(Step.PREVOTE, 4)
    assert votes(settle(machine)) == [(PRECOMMIT, 4, NIL)]
    assert machine.locked == Lock(2, V)


def test_restored_in_its_own_attempt_it_does_not_propose_again():
    machine = consensus(me=A)
    machine.restore(0, Step.PROPOSE, None, proposed=True)
    assert settle(machine) == [StartTimer(Step.PROPOSE, 0)]
