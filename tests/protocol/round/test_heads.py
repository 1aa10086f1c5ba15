"""Peers find out by their heads what they miss, and bring each other up to date."""

from __future__ import annotations

import pytest

from sterna_protocol.errors import MalformedMessage, Untimely
from sterna_protocol.node import Node
from sterna_protocol.round.effects import Closed, FetchAdapter, Fork, Misbehaved, Request
from sterna_protocol.round.heads import (
    CertificatesRequest,
    Frames,
    FramesRequest,
    Heads,
    Inventory,
    InventoryRequest,
    decode_request,
    decode_response,
    encode_sync,
)
from sterna_protocol.wire.messages import Prevote
from tests.support.founders import (
    CHARTER,
    ME,
    PEERS,
    SWARM,
    announcement,
    bad_signature,
    certificate,
    chain_of_voids,
    decision,
    digest,
    node,
    of_type,
    proof_against,
    signed,
)
from tests.support.virtual_peer import key_of


def exchange(asking: Node, answering: Node) -> int:
    """Let one node ask another for all it can; returns the number of requests."""
    requests = [asking.heads()]
    count = 0
    while requests:
        count += 1
        response = answering.answer(key_of(ME).peer, requests.pop())
        effects = asking.synced(5.0, key_of(1).peer, response)
        requests += [effect.data for effect in of_type(effects, Request)]
    return count


def test_new_peers_are_asked_for_their_heads():
    made = node()
    effects = made.peers_changed(1.0, PEERS | {key_of(8).peer})
    assert of_type(effects, Request) == [Request(key_of(8).peer, made.heads())]


def test_a_peer_that_is_ahead_is_asked_for_certificates_once_in_a_while():
    made = node()
    frame = signed(1, Prevote(choice=b""), round_=5).frame()
    [asked] = of_type(made.receive(2.0, frame, key_of(1).peer), Request)
    assert isinstance(decode_request(asked.data), CertificatesRequest)
    with pytest.raises(Untimely):
        made.receive(2.1, frame, key_of(1).peer)
    assert of_type(made.receive(4.0, frame, key_of(1).peer), Request)


def test_equal_heads_end_the_exchange():
    assert exchange(node(), node()) == 1


def test_heads_bring_what_gossip_lost():
    full, empty = node(), node()
    for number in (1, 2, 3):
        full.receive(1.0, signed(number, announcement(number)).frame(), None)
        full.receive(1.0, signed(number, Prevote(choice=b"")).frame(), None)
    assert exchange(empty, full) == 3
    assert empty.status().messages == full.status().messages
    assert exchange(empty, full) == 1


def test_a_node_that_is_behind_takes_the_certificates_one_by_one():
    ahead, behind = node(), node()
    chain = chain_of_voids(6)
    for closing in chain:
        ahead.receive(1.0, closing.frame(), None)
    exchange(behind, ahead)
    assert behind.round_ == 7
    assert behind.head == chain[-1]


def test_only_the_newest_adapter_is_fetched():
    behind = node()
    first = certificate(decision(1, 2))
    second = certificate(
        decision(round_=2, previous=first.id, adapter=digest(77), attesters=CHARTER.founders[:3])
    )
    response = encode_sync(Frames(frames=(first.frame(), second.frame())))
    effects = behind.synced(5.0, key_of(1).peer, response)
    assert [fetch.adapter for fetch in of_type(effects, FetchAdapter)] == [digest(77)]
    assert len(of_type(effects, Closed)) == 2


def test_a_peer_with_another_head_shows_its_fork():
    ours, theirs = node(), node()
    ours.receive(1.0, certificate(decision(1, 2)).frame(), None)
    theirs.receive(1.0, certificate(decision(2, 3)).frame(), None)
    requests, forks = [ours.heads()], []
    while requests:
        effects = ours.synced(5.0, key_of(1).peer, theirs.answer(key_of(ME).peer, requests.pop()))
        requests += [effect.data for effect in of_type(effects, Request)]
        forks += of_type(effects, Fork)
    assert len(forks) == 1


def test_a_bad_frame_in_a_response_is_blamed_on_who_sent_it_and_the_rest_is_dropped():
    made = node()
    frames = (bad_signature(signed(1, announcement(1))), signed(2, announcement(2)).frame())
    effects = made.synced(5.0, key_of(3).peer, encode_sync(Frames(frames=frames)))
    assert [effect.peer for effect in of_type(effects, Misbehaved)] == [key_of(3).peer]
    assert not made.status().authors


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"\x01",
        b"\x09abc",
        encode_sync(InventoryRequest(swarm=digest(3), round_=1)),
        encode_sync(Heads(swarm=digest(3), round_=1, head=SWARM, messages=SWARM, trains=True)),
    ],
)
def test_a_malformed_request_is_refused(request_):
    with pytest.raises(MalformedMessage):
        node().answer(key_of(1).peer, request_)


def test_a_request_about_another_round_is_answered_with_nothing():
    made = node()
    made.receive(1.0, signed(1, announcement(1)).frame(), None)
    inventory = decode_response(
        made.answer(key_of(1).peer, encode_sync(InventoryRequest(swarm=SWARM, round_=2)))
    )
    assert inventory == Inventory(round_=2, ids=())
    frames = FramesRequest(swarm=SWARM, round_=2, ids=(signed(1, announcement(1)).id,))
    assert decode_response(made.answer(key_of(1).peer, encode_sync(frames))) == Frames(frames=())


def test_a_node_serves_the_part_of_its_chain_that_is_asked_for():
    chain = chain_of_voids(5)
    serving = node(certificates=chain)
    asked = CertificatesRequest(swarm=SWARM, first=3, count=2)
    answered = decode_response(serving.answer(key_of(1).peer, encode_sync(asked)))
    assert answered == Frames(frames=tuple(closing.frame() for closing in chain[2:4]))
    asked = CertificatesRequest(swarm=SWARM, first=0, count=10)
    assert decode_response(serving.answer(key_of(1).peer, encode_sync(asked))) == Frames(frames=())


def test_heads_agree_about_a_two_faced_author_whichever_messages_were_seen():
    one, other = node(), node()
    bodies = [Prevote(choice=digest(number)) for number in range(3)]
    for body in bodies[:2]:
        one.receive(1.0, signed(1, body).frame(), None)
    for body in bodies[:0:-1]:
        other.receive(1.0, signed(1, body).frame(), None)
    assert one.heads() == other.heads()
    with pytest.raises(Untimely):
        one.receive(2.0, signed(1, bodies[2]).frame(), None)


def test_a_proof_is_carried_into_the_next_round():
    made, other = node(), node()
    made.receive(1.0, proof_against(2, 1, 2).frame(), None)
    for each in (made, other):
        each.receive(2.0, certificate(decision(1, 2)).frame(), None)
    assert made.heads() != other.heads()
    exchange(other, made)
    assert made.heads() == other.heads()
