"""What a member fetches and attests, and when."""

from __future__ import annotations

from itertools import pairwise

import pytest

from sterna_protocol.errors import Untimely
from sterna_protocol.round.effects import Broadcast, Effect, FetchDelta, StoreOwn
from sterna_protocol.round.phases import Phase
from sterna_protocol.round.pool import MAX_STRANGERS
from sterna_protocol.wire.messages import Attestation
from tests.support.founders import (
    STRANGER,
    TRAINS,
    accepted_by,
    announcement,
    attesting_node,
    commitment,
    digest,
    node,
    of_type,
    revealing_node,
    signed,
    waiting_node,
)
from tests.support.virtual_peer import FIGURES, key_of


def test_fetches_what_is_announced():
    effects = revealing_node(1)[0].receive(5.0, signed(1, announcement(1)).frame(), None)
    [fetch] = of_type(effects, FetchDelta)
    assert (fetch.delta, fetch.author, fetch.trained_round) == (digest(1), key_of(1).peer, 1)
    assert fetch.holders == (key_of(1).peer,)


def test_a_delta_that_its_author_withholds_is_fetched_from_who_attested_it():
    made = revealing_node(1)[0]
    made.receive(5.0, signed(1, announcement(1)).frame(), None)
    name = signed(1, announcement(1)).id
    assert not of_type(made.delta_checked(5.5, name, "unreachable"), FetchDelta)
    effects = made.receive(6.0, signed(2, Attestation(accepted=(name,))).frame(), None)
    [fetch] = of_type(effects, FetchDelta)
    assert fetch.holders == (key_of(1).peer, key_of(2).peer)
    assert not of_type(made.tick(6.5), FetchDelta)


def test_what_a_quorum_attested_has_room_though_strangers_fill_the_round():
    made = node()
    for number in range(100, 100 + MAX_STRANGERS):
        made.receive(1.0, signed(number, announcement(number)).frame(), None)
    late = signed(STRANGER, announcement(STRANGER))
    for member in (1, 2, 3):
        with pytest.raises(Untimely, match="no room"):
            made.receive(2.0, late.frame(), None)
        made.receive(3.0, signed(member, Attestation(accepted=(late.id,))).frame(), None)
    made.receive(4.0, late.frame(), None)
    assert made.holds(late.frame())


def test_anyone_may_announce():
    made = revealing_node(STRANGER)[0]
    effects = made.receive(5.0, signed(STRANGER, announcement(STRANGER)).frame(), None)
    assert of_type(effects, FetchDelta)


def test_attests_once_nothing_more_can_come():
    made, effects = attesting_node()
    assert accepted_by(effects) == {signed(n, announcement(n)).id for n in (0, 1)}
    assert made.phase is Phase.ATTEST


def test_a_delta_that_was_not_committed_to_in_time_is_not_attested():
    made, _ = revealing_node(1)
    made.receive(6.0, commitment(2).frame(), None)
    effects = made.receive(6.0, signed(2, announcement(2)).frame(), None)
    assert not of_type(effects, FetchDelta)
    made.receive(6.0, signed(1, announcement(1)).frame(), None)
    effects = made.delta_checked(6.5, signed(1, announcement(1)).id, None)
    assert accepted_by(effects) == {signed(n, announcement(n)).id for n in (0, 1)}


def test_waits_for_a_delta_that_was_committed_to_until_the_time_is_over():
    made = waiting_node()
    made.receive(5.5, commitment(2).frame(), None)
    made.receive(6.0, signed(1, announcement(1)).frame(), None)
    made.delta_checked(6.0, signed(1, announcement(1)).id, None)
    assert made.phase is Phase.REVEAL
    assert accepted_by(made.tick(8.5)) == {signed(n, announcement(n)).id for n in (0, 1)}


def test_does_not_attest_a_delta_that_was_refused():
    made = node()
    made.answer(key_of(2).peer, TRAINS)
    made.trained(5.0, round_=1, delta=digest(0), figures=FIGURES)
    effects: list[Effect] = []
    for number in (1, 2):
        made.receive(5.0, commitment(number).frame(), None)
    for number, error in ((1, "codes out of range"), (2, None)):
        made.receive(5.0, signed(number, announcement(number)).frame(), None)
        effects = made.delta_checked(6.0, signed(number, announcement(number)).id, error)
    assert accepted_by(effects) == {signed(n, announcement(n)).id for n in (0, 2)}


def test_with_too_few_deltas_a_late_commitment_counts():
    made, _ = revealing_node(1)
    made.tick(100.0)
    assert made.phase is Phase.REVEAL
    made.receive(101.0, commitment(2).frame(), None)
    made.receive(101.0, signed(2, announcement(2)).frame(), None)
    effects = made.delta_checked(102.0, signed(2, announcement(2)).id, None)
    assert accepted_by(effects) == {signed(n, announcement(n)).id for n in (0, 2)}


def test_follows_with_too_few_deltas_when_one_honest_member_must_have_attested():
    made, _ = revealing_node(1)
    made.receive(6.0, signed(1, Attestation(accepted=())).frame(), None)
    made.tick(20.0)
    assert made.phase is Phase.REVEAL
    made.receive(21.0, signed(2, Attestation(accepted=())).frame(), None)
    assert made.phase is Phase.ATTEST


def test_every_own_message_is_stored_before_it_is_sent():
    effects = attesting_node()[1]
    stored: set[bytes] = set()
    for effect in effects:
        if isinstance(effect, StoreOwn):
            stored.add(effect.frame)
        elif isinstance(effect, Broadcast):
            assert effect.frame in stored


def test_own_messages_are_repeated_at_a_bounded_cadence_while_nothing_happens():
    made, _ = attesting_node()
    times = []
    now = 6.0
    while now < 60.0:
        now = made.next_wake()
        if of_type(made.tick(now), Broadcast):
            times.append(now)
    gaps = [round(later - sooner) for sooner, later in pairwise(times)]
    assert gaps[:5] == [2, 4, 8, 8, 8]
