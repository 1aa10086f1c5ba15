"""Admission, as a node sees it: strangers are refused before any work, acts take effect by certificates."""

from __future__ import annotations

from typing import Any

import pytest

from sterna_protocol.errors import MalformedMessage, Untimely
from sterna_protocol.node import Node
from sterna_protocol.round.certificate import check_decision, make_certificate
from sterna_protocol.round.effects import Broadcast, Effect, FetchDelta, Request, Train
from sterna_protocol.round.heads import Frames, Heads, Inventory, decode_request, encode_sync
from sterna_protocol.round.phases import Phase
from sterna_protocol.swarm.roll import Roll
from sterna_protocol.wire import signing
from sterna_protocol.wire.acts import Act
from sterna_protocol.wire.messages import (
    Announcement,
    Body,
    Certificate,
    Commitment,
    Decision,
    Precommit,
    Signed,
    SlateEntry,
    sign,
)
from tests.support.admission import admission, departure, revocation, rotation
from tests.support.virtual_peer import FIGURES, GENESIS_ADAPTER, key_of, virtual_charter

MEMBERS = (0, 1, 2, 3)
FOUNDERS = tuple(sorted(key_of(number).peer for number in MEMBERS))
CHARTER = virtual_charter(FOUNDERS, admission="invite")
SWARM = CHARTER.swarm_id
JOINER, STRANGER = 8, 9
CONNECTED = frozenset(key_of(number).peer for number in (1, 2, 3, JOINER, STRANGER))
INVITED = admission(CHARTER, key_of(1), key_of(JOINER))


class Verifying:
    """``signing.verify`` that counts."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, peer: bytes, signature: bytes, preimage: bytes) -> None:
        self.count += 1
        signing.verify(peer, signature, preimage)


def node(number: int = 0, **changes: Any) -> Node:
    arguments: dict[str, Any] = {"trains": False, "now": 0.0, "genesis_adapter": GENESIS_ADAPTER} | changes
    made = Node(CHARTER, key_of(number), **arguments)
    made.start(0.0)
    made.peers_changed(0.0, CONNECTED - {key_of(number).peer})
    return made


def signed(number: int, body: Body, round_: int = 1) -> Signed:
    return sign(key_of(number), swarm=SWARM, round_=round_, attempt=0, body=body)


def announced(number: int) -> Signed:
    body = Announcement(
        delta=number.to_bytes(32, "big"), trained_round=1, base_adapter=GENESIS_ADAPTER, figures=FIGURES
    )
    return signed(number, body)


def committed(number: int) -> Signed:
    return signed(number, Commitment(announcement=announced(number).id))


def entry(number: int) -> SlateEntry:
    message = announced(number)
    return SlateEntry(
        author=message.author,
        announcement=message.id,
        delta=number.to_bytes(32, "big"),
        trained_round=1,
    )


def decision(*authors: int, changes: tuple[Act, ...] = (), **fields: Any) -> Decision:
    values: dict[str, Any] = {
        "round_": 1,
        "previous": SWARM,
        "entries": tuple(sorted((entry(number) for number in authors), key=lambda e: e.author)),
        "attesters": FOUNDERS[:3],
        "adapter": b"n" * 32 if authors else GENESIS_ADAPTER,
        "changes": changes,
    } | fields
    return Decision(**values)


def certified(made: Decision) -> Certificate:
    body = Precommit(choice=made.id)
    signatures = {key_of(n).peer: signed(n, body, made.round_).signature for n in (1, 2, 3)}
    return make_certificate(CHARTER, made, attempt=0, signatures=signatures)


def closed(taking: Node, made: Decision) -> list[Effect]:
    return taking.receive(1.0, certified(made).frame(), None)


def check(made: Decision, roll: Roll | None = None) -> None:
    check_decision(
        CHARTER,
        made,
        round_=made.round_,
        previous=SWARM,
        previous_adapter=GENESIS_ADAPTER,
        previous_excluded=(),
        members=FOUNDERS,
        roll=roll or Roll.founding(CHARTER),
    )


@pytest.mark.parametrize("message", [committed(STRANGER), announced(STRANGER)], ids=["commitment", "delta"])
def test_a_stranger_is_refused_before_its_signature_is_checked_and_before_any_fetch(message: Signed) -> None:
    verify = Verifying()
    taking = node(verify=verify)
    with pytest.raises(Untimely, match="not in the swarm"):
        taking.receive(0.0, message.frame(), None)
    assert verify.count == 0
    assert not any(isinstance(effect, FetchDelta) for effect in taking.tick(100.0))
    assert taking.status().authors == ()


def test_an_early_message_of_a_stranger_is_not_kept() -> None:
    verify = Verifying()
    taking = node(verify=verify)
    early = signed(STRANGER, Commitment(announcement=b"x" * 32), round_=2)
    taking.receive(0.0, early.frame(), key_of(1).peer)
    assert verify.count == 0


def test_who_holds_an_invite_announces_in_the_very_round() -> None:
    taking = node()
    taking.receive(0.0, INVITED.frame(), None)
    effects: list[Effect] = []
    for message in (committed(JOINER), committed(1), announced(JOINER), announced(1)):
        effects += taking.receive(0.1, message.frame(), None)
    assert {effect.author for effect in effects if isinstance(effect, FetchDelta)} == {
        key_of(1).peer,
        key_of(JOINER).peer,
    }


def test_an_act_alone_lets_nobody_in_but_a_certificate_does() -> None:
    taking = node()
    taking.receive(0.0, INVITED.frame(), None)
    assert not taking.roll.may_announce(key_of(JOINER).peer)
    closed(taking, decision(1, JOINER, changes=(INVITED,)))
    assert taking.roll.may_announce(key_of(JOINER).peer)
    assert key_of(JOINER).peer in taking.committee


def test_an_act_that_waits_is_carried_into_the_next_round() -> None:
    taking = node()
    taking.receive(0.0, INVITED.frame(), None)
    closed(taking, decision())
    taking.receive(2.0, signed(JOINER, Commitment(announcement=b"x" * 32), round_=2).frame(), None)
    assert key_of(JOINER).peer in taking.status().committed


def test_an_act_reaches_a_node_that_missed_it() -> None:
    """Ids and frames of acts are part of what nodes compare; the act is read before what needs it."""
    knows, lacks = node(1), node(2)
    knows.receive(0.0, INVITED.frame(), None)
    knows.receive(0.0, committed(JOINER).frame(), None)
    peer = key_of(1).peer
    request = lacks.heads()
    while request:
        response = knows.answer(key_of(2).peer, request)
        effects = lacks.synced(0.0, peer, response)
        request = next((effect.data for effect in effects if isinstance(effect, Request)), b"")
    assert lacks.status().committed == (key_of(JOINER).peer,)
    ours, theirs = (decode_request(other.heads()) for other in (knows, lacks))
    assert isinstance(ours, Heads)
    assert isinstance(theirs, Heads)
    assert ours.messages == theirs.messages


def test_a_nodes_own_act_is_offered_again_until_it_is_done() -> None:
    joining = node(JOINER)
    assert Broadcast(INVITED.frame()) in joining.bring(0.0, INVITED)
    assert Broadcast(INVITED.frame()) in closed(joining, decision())
    after = decision(round_=2, previous=joining.head.id if joining.head else b"", changes=(INVITED,))
    assert Broadcast(INVITED.frame()) not in closed(joining, after)
    assert joining.roll.may_announce(key_of(JOINER).peer)


def test_a_restarted_node_offers_its_act_at_once() -> None:
    made = Node(
        CHARTER, key_of(JOINER), trains=True, now=0.0, genesis_adapter=GENESIS_ADAPTER, acts=[INVITED]
    )
    effects = made.start(0.0)
    assert effects[0] == Broadcast(INVITED.frame())
    assert any(isinstance(effect, Train) for effect in effects)


def test_who_is_not_in_the_swarm_trains_nothing() -> None:
    made = Node(CHARTER, key_of(STRANGER), trains=True, now=0.0, genesis_adapter=GENESIS_ADAPTER)
    assert not made.may_announce
    assert not any(isinstance(effect, Train) for effect in made.start(0.0))


def test_nobody_waits_for_a_stranger_that_says_it_trains() -> None:
    taking = node()
    heads = Heads(swarm=SWARM, round_=1, head=SWARM, messages=SWARM, trains=True)
    taking.answer(key_of(STRANGER).peer, encode_sync(heads))
    taking.receive(0.0, committed(1).frame(), None)
    taking.receive(0.0, committed(2).frame(), None)
    assert taking.phase is Phase.REVEAL


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (decision(1, STRANGER), "who is not in the swarm"),
        (decision(1, JOINER), "who is not in the swarm"),
        (decision(1, JOINER, changes=(INVITED, INVITED)), "is in the swarm"),
        (decision(1, changes=(admission(CHARTER, key_of(STRANGER), key_of(JOINER)),)), "1 deltas"),
        (decision(changes=(admission(CHARTER, key_of(STRANGER), key_of(JOINER)),)), "not in the swarm"),
        (decision(changes=(revocation(CHARTER, key_of(1), key_of(2)),)), "who can be revoked"),
        (decision(1, 2, changes=(departure(CHARTER, key_of(2)),)), "who is not in the swarm"),
        (decision(1, 2, changes=(rotation(CHARTER, key_of(2), key_of(30)),)), "who is not in the swarm"),
    ],
)
def test_a_decision_against_the_roll_is_malformed(made: Decision, why: str) -> None:
    with pytest.raises(MalformedMessage, match=why):
        check(made)


def test_a_decision_with_the_roll_is_well_formed() -> None:
    check(decision(1, JOINER, changes=(INVITED,)))


def test_a_revoked_peer_is_refused_from_the_round_that_certifies_it() -> None:
    taking = node()
    closed(taking, decision(1, JOINER, changes=(INVITED,)))
    assert taking.head is not None
    cut = revocation(CHARTER, key_of(1), key_of(JOINER))
    members = taking.committee
    closing = decision(
        round_=2, previous=taking.head.id, attesters=members[:3], adapter=b"n" * 32, changes=(cut,)
    )
    body = Precommit(choice=closing.id)
    voters = [n for n in (0, 1, 2, 3, JOINER) if key_of(n).peer in members]
    signatures = {key_of(n).peer: signed(n, body, 2).signature for n in voters}
    taking.receive(2.0, make_certificate(CHARTER, closing, attempt=0, signatures=signatures).frame(), None)
    assert taking.round_ == 3
    assert key_of(JOINER).peer not in taking.committee
    with pytest.raises(Untimely, match="not in the swarm"):
        taking.receive(3.0, signed(JOINER, Commitment(announcement=b"x" * 32), round_=3).frame(), None)
    with pytest.raises(Untimely, match="barred"):
        taking.receive(3.0, INVITED.frame(), None)


def test_a_rotated_founder_sits_under_its_new_key() -> None:
    taking = node()
    closed(taking, decision(changes=(rotation(CHARTER, key_of(2), key_of(30)),)))
    assert key_of(30).peer in taking.committee
    assert key_of(2).peer not in taking.committee
    with pytest.raises(Untimely, match="not in the swarm"):
        taking.receive(3.0, signed(2, Commitment(announcement=b"x" * 32), round_=2).frame(), None)


def test_frames_of_acts_are_served() -> None:
    serving = node()
    serving.receive(0.0, INVITED.frame(), None)
    ids = Inventory(round_=1, ids=(INVITED.id,))
    asking = node(2)
    effects = asking.synced(0.0, FOUNDERS[0], encode_sync(ids))
    [asked] = [effect for effect in effects if isinstance(effect, Request)]
    assert serving.answer(FOUNDERS[0], asked.data) == encode_sync(Frames(frames=(INVITED.frame(),)))
