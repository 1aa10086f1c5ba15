"""Each rule of the consensus: when it fires, when it must not, and what it does."""

from __future__ import annotations

import pytest

from sterna_protocol.round.consensus import (
    NIL,
    Action,
    Consensus,
    Decided,
    Lock,
    Propose,
    StartTimer,
    Step,
    Verdict,
    Vote,
)
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


def test_a_quorum_of_any_precommits_starts_the_timer_of_the_next_attempt():
    machine = started()
    add(machine, PRECOMMIT, 0, V, A)
    add(machine, PRECOMMIT, 0, NIL, B, C)
    machine.timeout(Step.PROPOSE, 0)
    assert StartTimer(Step.PRECOMMIT, 0) in settle(machine)
    machine.timeout(Step.PRECOMMIT, 0)
    assert settle(machine) == [StartTimer(Step.PROPOSE, 1)]


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


@pytest.mark.parametrize("step", [Step.PROPOSE, Step.PREVOTE, Step.PRECOMMIT])
def test_a_timeout_of_an_earlier_attempt_changes_nothing(step):
    machine = locked_on_v()
    before = (machine.attempt, machine.step, machine.locked)
    machine.timeout(step, 0)
    assert settle(machine) == []
    assert (machine.attempt, machine.step, machine.locked) == before


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


def test_forgotten_votes_do_not_count():
    machine = started()
    machine.add_offer(0, A, V, 0)
    add(machine, PRECOMMIT, 0, V, A, B)
    machine.forget(PRECOMMIT, 0, A)
    add(machine, PRECOMMIT, 0, V, C)
    assert all(not isinstance(action, Decided) for action in settle(machine))


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
