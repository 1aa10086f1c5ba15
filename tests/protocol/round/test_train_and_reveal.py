"""From training to the announcement: what a node signs, and whom it waits for before it shows its delta."""

from __future__ import annotations

from sterna_protocol.node import Node
from sterna_protocol.round.effects import Broadcast, StoreOwn, Train
from sterna_protocol.round.phases import Phase
from sterna_protocol.wire.messages import Commitment, Kind, decode_frame
from tests.support.founders import (
    CHARTER,
    ME,
    PEERS,
    TRAINS,
    announcement,
    commitment,
    digest,
    node,
    revealing_node,
    signed,
    waiting_node,
)
from tests.support.virtual_peer import FIGURES, GENESIS_ADAPTER, key_of


def test_trains_as_soon_as_it_starts():
    effects = Node(CHARTER, key_of(ME), trains=True, now=0.0, genesis_adapter=GENESIS_ADAPTER).start(0.0)
    assert effects == [Train(1, GENESIS_ADAPTER)]


def test_a_node_that_does_not_train_is_not_asked_to():
    assert Node(CHARTER, key_of(ME), trains=False, now=0.0, genesis_adapter=GENESIS_ADAPTER).start(0.0) == []


def test_an_announcement_is_stored_and_only_committed_to():
    effects = node().trained(5.0, round_=1, delta=digest(1), figures=FIGURES)
    assert [type(effect) for effect in effects] == [StoreOwn, StoreOwn, Broadcast]
    assert [effect.kind for effect in effects[:2]] == [Kind.ANNOUNCEMENT, Kind.COMMITMENT]
    assert effects[1].frame == effects[2].frame
    announced = decode_frame(effects[0].frame)
    assert decode_frame(effects[1].frame).body == Commitment(announcement=announced.id).encode()


def test_announces_when_everybody_known_has_committed():
    made = node()
    made.answer(key_of(2).peer, TRAINS)
    made.trained(5.0, round_=1, delta=digest(0), figures=FIGURES)
    made.receive(6.0, commitment(1).frame(), None)
    assert made.phase is Phase.TRAIN
    assert Broadcast(signed(0, announcement(0)).frame()) in made.receive(7.0, commitment(2).frame(), None)
    assert made.phase is Phase.REVEAL


def test_follows_shortly_after_one_honest_member_must_have_announced():
    made = node()
    made.answer(key_of(2).peer, TRAINS)
    made.receive(5.0, signed(1, announcement(1)).frame(), None)
    made.tick(9.0)
    assert made.phase is Phase.TRAIN
    made.receive(10.0, signed(3, announcement(3)).frame(), None)
    assert made.next_wake() == 11.0
    made.tick(10.9)
    assert made.phase is Phase.TRAIN
    made.tick(11.0)
    assert made.phase is Phase.REVEAL


def test_a_two_faced_commitment_counts_for_nothing():
    made, _ = revealing_node(2)
    for face in (signed(1, announcement(1)).id, digest(4)):
        made.receive(6.0, signed(1, Commitment(announcement=face)).frame(), None)
    assert key_of(1).peer not in made.status().committed


def test_waits_for_a_connected_peer_that_trains_until_the_time_is_over():
    made = waiting_node()
    assert made.next_wake() <= 20.0
    made.tick(19.9)
    assert made.phase is Phase.TRAIN
    made.tick(20.0)
    assert made.phase is Phase.REVEAL


def test_waits_no_longer_for_a_peer_that_left():
    made = waiting_node()
    made.peers_changed(7.0, PEERS - {key_of(2).peer})
    assert made.phase is Phase.REVEAL


def test_waits_on_with_too_few_commitments_for_a_slate_and_does_not_ask_to_be_woken():
    made = node()
    made.trained(5.0, round_=1, delta=digest(0), figures=FIGURES)
    made.tick(20.0)
    made.tick(500.0)
    assert made.phase is Phase.TRAIN
    assert made.next_wake() > 500.0
