"""Who decides the next round, and how many of them it takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna_protocol.swarm.committee import blocking, committee, proposer, proposers, quorum
from sterna_protocol.wire.limits import MAX_COMMITTEE
from sterna_protocol.wire.messages import Certificate, CommitSignature, Decision, SlateEntry
from tests.support.virtual_network import key_of, virtual_charter

FOUNDERS = tuple(sorted(key_of(number).peer for number in range(3)))
CHARTER = virtual_charter(FOUNDERS)


def member(number: int) -> bytes:
    return number.to_bytes(32, "big")


def certificate(authors: list[int], attesters: list[int]) -> Certificate:
    entries = tuple(
        SlateEntry(author=member(n), announcement=bytes(32), delta=bytes(32), trained_round=1)
        for n in sorted(authors)
    )
    decision = Decision(
        round_=1,
        previous=bytes(32),
        entries=entries,
        attesters=tuple(member(n) for n in sorted(attesters)),
        adapter=bytes(32),
    )
    signature = CommitSignature(member=bytes(32), signature=bytes(64))
    return Certificate(swarm=bytes(32), attempt=0, decision=decision, signatures=(signature,))


def test_the_founders_decide_the_first_round():
    assert committee(CHARTER, None) == FOUNDERS


def test_authors_and_attesters_decide_the_next_round():
    found = committee(CHARTER, certificate([1, 2, 3], [3, 4]))
    assert found == tuple(member(n) for n in (1, 2, 3, 4))


def test_the_founders_fill_up_a_committee_of_fewer_than_four():
    assert committee(CHARTER, certificate([1], [1, 2])) == tuple(sorted({member(1), member(2), *FOUNDERS}))


def test_a_committee_of_four_needs_no_founders():
    assert not set(FOUNDERS) & set(committee(CHARTER, certificate([1, 2], [3, 4])))


def test_the_excluded_are_left_out_of_members_and_founders():
    made = certificate([1, 2], [3, 4, 5])
    decision = made.decision.model_copy(update={"excluded": (member(2), FOUNDERS[0])})
    found = committee(CHARTER, made.model_copy(update={"decision": decision}))
    assert found == tuple(member(n) for n in (1, 3, 4, 5))
    decision = decision.model_copy(update={"entries": (), "attesters": (member(2),)})
    found = committee(CHARTER, made.model_copy(update={"decision": decision}))
    assert found == FOUNDERS[1:]


def test_if_everybody_were_excluded_the_founders_go_on():
    made = certificate([], [1])
    decision = made.decision.model_copy(update={"excluded": tuple(sorted((member(1), *FOUNDERS)))})
    assert committee(CHARTER, made.model_copy(update={"decision": decision})) == FOUNDERS


def test_a_void_round_leaves_its_attesters():
    assert committee(CHARTER, certificate([], [1, 2, 3, 4])) == tuple(member(n) for n in (1, 2, 3, 4))


def test_of_too_many_a_lot_decides_that_the_certificate_draws():
    crowd = list(range(60))
    one = committee(CHARTER, certificate(crowd, [1]))
    other = committee(CHARTER, certificate(crowd, [1, 2]))
    assert len(one) == len(other) == MAX_COMMITTEE
    assert one != other
    assert list(one) == sorted(one)


@pytest.mark.parametrize(
    ("members", "byzantine", "majority"),
    [(1, 1, 1), (2, 2, 2), (3, 3, 2), (4, 3, 3), (5, 4, 3), (6, 5, 4), (7, 5, 4), (10, 7, 6), (32, 22, 17)],
)
def test_a_quorum_is_what_the_charter_says(members, byzantine, majority):
    assert quorum(CHARTER, members) == byzantine
    assert quorum(virtual_charter(FOUNDERS, quorum="majority"), members) == majority


@given(st.integers(1, MAX_COMMITTEE))
def test_two_byzantine_quorums_share_an_honest_member_and_the_honest_are_a_quorum(members):
    faulty = (members - 1) // 3
    needed = quorum(CHARTER, members)
    assert 2 * needed - members > faulty
    assert members - faulty >= needed
    assert blocking(CHARTER, members) > faulty


@given(st.integers(1, MAX_COMMITTEE))
def test_two_majorities_share_a_member(members):
    assert 2 * quorum(virtual_charter(FOUNDERS, quorum="majority"), members) > members


def test_every_member_proposes_in_turn_in_an_order_that_the_last_decision_draws():
    members = tuple(member(n) for n in range(7))
    order = [proposer(members, b"x" * 32, attempt) for attempt in range(7)]
    assert sorted(order) == list(members)
    assert order == list(proposers(members, b"x" * 32))
    assert [proposer(members, b"x" * 32, attempt + 7) for attempt in range(7)] == order
    assert order != list(proposers(members, b"y" * 32))
