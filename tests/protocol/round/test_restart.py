"""A node that starts again sends what it had signed, and signs nothing else for the same place."""

from __future__ import annotations

import pytest

from sterna_protocol.errors import Untimely
from sterna_protocol.node import Node
from sterna_protocol.round.effects import Broadcast, StoreEvidence, StoreOwn
from sterna_protocol.round.phases import Phase
from sterna_protocol.wire.messages import Prevote, decode_frame
from tests.support.founders import (
    CHARTER,
    ME,
    announcement,
    attesting_node,
    certificate,
    decision,
    digest,
    node,
    of_type,
    signed,
)
from tests.support.virtual_peer import FIGURES, GENESIS_ADAPTER, key_of


def test_a_crash_between_announcement_and_commitment_is_made_up_for():
    effects = node().trained(5.0, round_=1, delta=digest(0), figures=FIGURES)
    again = Node(
        CHARTER,
        key_of(ME),
        trains=True,
        now=0.0,
        genesis_adapter=GENESIS_ADAPTER,
        own_frames=[effects[0].frame],
    )
    assert again.start(0.0) == effects[1:]


def test_a_restarted_node_sends_what_it_had_signed_and_nothing_else():
    _, effects = attesting_node()
    frames = [effect.frame for effect in of_type(effects, StoreOwn)]
    again = node(own_frames=frames)
    assert again.phase is Phase.ATTEST
    repeated = [effect.frame for effect in of_type(again.tick(60.0), Broadcast)]
    assert sorted(repeated) == sorted(frames)
    more = again.trained(61.0, round_=1, delta=digest(55), figures=FIGURES)
    assert not of_type(more, StoreOwn)


def test_a_restarted_node_announces_again_what_missed_the_slate():
    _, effects = attesting_node()
    frames = [effect.frame for effect in of_type(effects, StoreOwn)]
    again = Node(
        CHARTER,
        key_of(ME),
        trains=True,
        now=0.0,
        genesis_adapter=GENESIS_ADAPTER,
        certificates=[certificate(decision(1, 2))],
        own_frames=frames,
    )
    stored = of_type(again.start(0.0), StoreOwn)
    assert decode_frame(stored[0].frame).body == announcement(0).encode()


def test_a_restarted_node_remembers_evidence():
    made = node()
    made.receive(1.0, signed(1, Prevote(choice=b"")).frame(), None)
    effects = made.receive(2.0, signed(1, Prevote(choice=digest(1))).frame(), None)
    proof = of_type(effects, StoreEvidence)[0].evidence
    with pytest.raises(Untimely):
        node(evidence=[proof]).receive(3.0, proof.frame(), None)
