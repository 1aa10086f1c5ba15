"""Who decides the next round, and how many of them it takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna_protocol.swarm.charter import Charter
from sterna_protocol.swarm.committee import blocking, committee, proposer, proposers, quorum
from sterna_protocol.swarm.roll import Roll
from sterna_protocol.wire.limits import MAX_COMMITTEE
from sterna_protocol.wire.messages import Certificate, CommitSignature, Decision, SlateEntry
from tests.support.admission import admission, decided
from tests.support.virtual_peer import key_of, virtual_charter

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


def committee_after(certificate: Certificate | None) -> tuple[bytes, ...]:
    roll = Roll.founding(CHARTER)
    return committee(CHARTER, certificate, roll if certificate is None else roll.after(certificate.decision))


def test_the_founders_decide_the_first_round():
    assert committee_after(None) == FOUNDERS


def test_authors_and_attesters_decide_the_next_round():
    found = committee_after(certificate([1, 2, 3], [3, 4]))
    assert found == tuple(member(n) for n in (1, 2, 3, 4))


def test_the_founders_fill_up_a_committee_of_fewer_than_four():
    assert committee_after(certificate([1], [1, 2])) == tuple(sorted({member(1), member(2), *FOUNDERS}))


def test_a_committee_of_four_needs_no_founders():
    assert not set(FOUNDERS) & set(committee_after(certificate([1, 2], [3, 4])))


def test_the_excluded_are_left_out_of_members_and_founders():
    made = certificate([1, 2], [3, 4, 5])
    decision = made.decision.model_copy(update={"excluded": (member(2), FOUNDERS[0])})
    found = committee_after(made.model_copy(update={"decision": decision}))
    assert found == tuple(member(n) for n in (1, 3, 4, 5))
    decision = decision.model_copy(update={"entries": (), "attesters": (member(2),)})
    found = committee_after(made.model_copy(update={"decision": decision}))
    assert found == FOUNDERS[1:]


def test_if_everybody_were_excluded_the_founders_go_on():
    made = certificate([], [1])
    decision = made.decision.model_copy(update={"excluded": tuple(sorted((member(1), *FOUNDERS)))})
    assert committee_after(made.model_copy(update={"decision": decision})) == FOUNDERS


def test_a_void_round_leaves_its_attesters():
    assert committee_after(certificate([], [1, 2, 3, 4])) == tuple(member(n) for n in (1, 2, 3, 4))


def test_of_too_many_a_lot_decides_that_the_certificate_draws():
    crowd = list(range(60))
    one = committee_after(certificate(crowd, [1]))
    other = committee_after(certificate(crowd, [1, 2]))
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


def invited(branches: dict[int, list[int]]) -> tuple[Charter, Roll]:
    """A swarm where each founder-invited key of ``branches`` invited the others of its list."""
    charter = virtual_charter(FOUNDERS, admission="invite")
    roll = Roll.founding(charter)
    for top, others in branches.items():
        roll = roll.changed([admission(charter, key_of(0), key_of(top), may_invite=40)], 1)
        for other in others:
            roll = roll.changed([admission(charter, key_of(top), key_of(other))], 1)
    return charter, roll


def committee_of(charter: Charter, roll: Roll, authors: list[int]) -> tuple[bytes, ...]:
    closing = certificate([], [])
    entries = tuple(
        SlateEntry(author=author, announcement=bytes(32), delta=bytes(32), trained_round=1)
        for author in sorted(key_of(number).peer for number in authors)
    )
    decision = closing.decision.model_copy(update={"entries": entries})
    return committee(charter, closing.model_copy(update={"decision": decision}), roll.after(decision))


def test_a_branch_alone_never_blocks_a_quorum_of_four_branches_or_more():
    crowd = list(range(100, 130))
    charter, roll = invited({10: crowd, 11: [], 12: [], 13: []})
    found = committee_of(charter, roll, [10, 11, 12, 13, *crowd])
    seats = sum(roll.branch(member) == key_of(10).peer for member in found)
    assert seats >= 1
    assert seats < blocking(charter, len(found))
    assert {key_of(number).peer for number in (11, 12, 13)} <= set(found)


def test_two_branches_of_four_share_what_is_left():
    charter, roll = invited({10: list(range(100, 110)), 11: list(range(110, 120)), 12: [120], 13: [121]})
    found = committee_of(charter, roll, [*range(10, 14), *range(100, 122)])
    for top in range(10, 14):
        seats = sum(roll.branch(member) == key_of(top).peer for member in found)
        assert 1 <= seats < blocking(charter, len(found))


def test_with_fewer_than_four_branches_nobody_is_left_out():
    charter, roll = invited({10: list(range(100, 106)), 11: [], 12: []})
    assert len(committee_of(charter, roll, [10, 11, 12, *range(100, 106)])) == 9


def test_a_stranger_sits_only_once_it_has_aged():
    charter = virtual_charter(FOUNDERS, admission="open", aged_rounds=2)
    roll = Roll.founding(charter)
    assert committee_of(charter, roll, [50]) == FOUNDERS
    roll = roll.after(decided(charter, 1, key_of(50)))
    assert key_of(50).peer in committee_of(charter, roll, [50])
