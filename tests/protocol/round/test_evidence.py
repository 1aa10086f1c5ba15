"""Two messages for one place are proof against their author, and proof has consequences."""

from __future__ import annotations

import pytest

from sterna_protocol.errors import BadSignature, MalformedMessage, Untimely
from sterna_protocol.round.effects import Broadcast, StoreEvidence
from sterna_protocol.wire.messages import Certificate, Prevote
from tests.support.founders import (
    announcement,
    bad_signature,
    certificate,
    decision,
    digest,
    node,
    of_type,
    proof_against,
    signed,
)
from tests.support.virtual_peer import key_of


def test_two_messages_for_one_place_make_evidence_that_others_accept():
    made, other = node(), node()
    made.receive(1.0, signed(1, Prevote(choice=b"")).frame(), None)
    effects = made.receive(2.0, signed(1, Prevote(choice=digest(1))).frame(), None)
    [proof] = of_type(effects, StoreEvidence)
    assert proof.evidence.author == key_of(1).peer
    assert Broadcast(proof.evidence.frame()) in effects
    effects = other.receive(3.0, proof.evidence.frame(), None)
    assert of_type(effects, StoreEvidence) == [proof]
    with pytest.raises(Untimely):
        other.receive(3.0, proof.evidence.frame(), None)


def test_a_proof_against_a_member_counts_in_later_rounds_whichever_it_is():
    nodes = [node(), node()]
    for made, faces in zip(nodes, ((1, 2), (3, 4)), strict=True):
        made.receive(1.0, certificate(decision(1, 2)).frame(), None)
        made.receive(2.0, proof_against(2, *faces).frame(), None)
        with pytest.raises(Untimely):
            made.receive(3.0, proof_against(2, 5, 6).frame(), None)
    assert nodes[0].heads() == nodes[1].heads()


def test_two_faces_of_a_vote_are_proof_even_if_the_round_closed_in_between():
    made = node()
    made.receive(1.0, signed(2, Prevote(choice=digest(1))).frame(), None)
    made.receive(2.0, certificate(decision(1, 2)).frame(), None)
    with pytest.raises(Untimely):
        made.receive(3.0, signed(2, Prevote(choice=digest(1))).frame(), None)
    with pytest.raises(BadSignature):
        made.receive(3.0, bad_signature(signed(2, Prevote(choice=digest(2)))), None)
    effects = made.receive(3.0, signed(2, Prevote(choice=digest(2))).frame(), None)
    assert of_type(effects, StoreEvidence)
    with pytest.raises(Untimely):
        made.receive(3.0, signed(2, Prevote(choice=digest(3))).frame(), None)


def test_forged_evidence_is_refused():
    made = node()
    made.receive(1.0, signed(1, Prevote(choice=b"")).frame(), None)
    effects = made.receive(2.0, signed(1, Prevote(choice=digest(1))).frame(), None)
    proof = of_type(effects, StoreEvidence)[0].evidence
    framed = proof.model_copy(update={"author": key_of(2).peer})
    with pytest.raises(BadSignature):
        node().receive(1.0, framed.frame(), None)


def excluding(number: int) -> Certificate:
    return certificate(decision(excluded=(key_of(number).peer,)))


def test_an_excluded_peer_takes_no_part_any_more():
    made = node()
    made.receive(1.0, excluding(1).frame(), None)
    assert made.status().excluded == (key_of(1).peer,)
    assert key_of(1).peer not in made.committee
    with pytest.raises(Untimely):
        made.receive(2.0, signed(1, announcement(1), round_=2).frame(), None)
    with pytest.raises(MalformedMessage):
        made.receive(2.0, signed(1, Prevote(choice=b""), round_=2).frame(), None)


def test_a_decision_that_forgets_who_was_excluded_is_refused():
    made = node()
    first = excluding(1)
    made.receive(1.0, first.frame(), None)
    with pytest.raises(MalformedMessage):
        made.receive(2.0, certificate(decision(round_=2, previous=first.id)).frame(), None)
