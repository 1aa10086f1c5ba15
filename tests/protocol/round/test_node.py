"""What a node does with each input, and that a refused one changes nothing."""

from __future__ import annotations

from itertools import pairwise

import pytest

from sterna_protocol.errors import BadSignature, MalformedMessage, Untimely
from sterna_protocol.node import Node
from sterna_protocol.round.certificate import make_certificate
from sterna_protocol.round.early import MAX_EARLY_PER_AUTHOR
from sterna_protocol.round.effects import (
    Broadcast,
    Closed,
    Effect,
    FetchAdapter,
    FetchDelta,
    Fork,
    Misbehaved,
    Request,
    StoreCertificate,
    StoreEvidence,
    StoreOwn,
    Train,
)
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
from sterna_protocol.round.phases import Phase
from sterna_protocol.swarm.committee import proposers
from sterna_protocol.wire.messages import (
    Announcement,
    Attestation,
    Body,
    Certificate,
    Commitment,
    Decision,
    Evidence,
    Kind,
    Precommit,
    Prevote,
    Proposal,
    Signed,
    SlateEntry,
    decode_frame,
    sign,
)
from tests.support.virtual_network import FIGURES, GENESIS_ADAPTER, key_of, virtual_charter

ME, STRANGER = 0, 9
MEMBERS = (0, 1, 2, 3)
CHARTER = virtual_charter(tuple(sorted(key_of(number).peer for number in MEMBERS)))
SWARM = CHARTER.swarm_id
PEERS = frozenset(key_of(number).peer for number in (1, 2, 3))


def digest(number: int) -> bytes:
    return number.to_bytes(32, "big")


def commitment(number: int) -> Signed:
    return signed(number, Commitment(announcement=signed(number, announcement(number)).id))


def node(**changes: object) -> Node:
    """A founder's node before round 1, connected to the other three."""
    arguments = {"trains": True, "now": 0.0, "genesis_adapter": GENESIS_ADAPTER} | changes
    made = Node(CHARTER, key_of(ME), **arguments)  # type: ignore[arg-type]
    made.start(0.0)
    made.peers_changed(0.0, PEERS)
    return made


def signed(number: int, body: Body, *, round_: int = 1, attempt: int = 0, swarm: bytes = SWARM) -> Signed:
    return sign(key_of(number), swarm=swarm, round_=round_, attempt=attempt, body=body)


def announcement(number: int, **changes: object) -> Announcement:
    values = {
        "delta": digest(number),
        "trained_round": 1,
        "base_adapter": GENESIS_ADAPTER,
        "figures": FIGURES,
    } | changes
    return Announcement(**values)  # type: ignore[arg-type]


def entry(number: int) -> SlateEntry:
    return SlateEntry(
        author=key_of(number).peer,
        announcement=signed(number, announcement(number)).id,
        delta=digest(number),
        trained_round=1,
    )


def decision(*numbers: int, **changes: object) -> Decision:
    values = {
        "round_": 1,
        "previous": SWARM,
        "entries": tuple(sorted((entry(number) for number in numbers), key=lambda e: e.author)),
        "attesters": CHARTER.founders[:3],
        "adapter": digest(77) if numbers else GENESIS_ADAPTER,
    } | changes
    return Decision(**values)  # type: ignore[arg-type]


def certificate(
    made: Decision, signers: tuple[int, ...] = (1, 2, 3), *, attempt: int = 0, swarm: bytes = SWARM
) -> Certificate:
    body = Precommit(choice=made.id)
    signatures = {
        key_of(number).peer: signed(number, body, round_=made.round_, attempt=attempt, swarm=swarm).signature
        for number in signers
    }
    return make_certificate(CHARTER, made, attempt=attempt, signatures=signatures)


def of_type(effects: list[Effect], kind: type) -> list:
    return [effect for effect in effects if isinstance(effect, kind)]


def proposer_number(attempt: int) -> int:
    order = proposers(CHARTER.founders, SWARM)
    return next(n for n in MEMBERS if key_of(n).peer == order[attempt % 4])


PROPOSER = proposer_number(0)
OTHER_PROPOSER = proposer_number(1)


def bad_signature(frame_of: Signed) -> bytes:
    return frame_of.model_copy(update={"signature": bytes(64)}).frame()


TRAINS = encode_sync(Heads(swarm=SWARM, round_=1, head=SWARM, messages=SWARM, trains=True))
"""Heads of a peer that trains."""

REFUSED = {
    "nothing": (b"", MalformedMessage),
    "an unknown kind": (b"\x63abc", MalformedMessage),
    "not msgpack": (bytes((Kind.PREVOTE,)) + b"\xc1", MalformedMessage),
    "another swarm's message": (
        signed(1, Prevote(choice=b""), swarm=digest(5)).frame(),
        MalformedMessage,
    ),
    "a kind outside that is not the one inside": (
        bytes((Kind.PRECOMMIT,)) + signed(1, Prevote(choice=b"")).encode(),
        MalformedMessage,
    ),
    "a commitment in an attempt": (
        signed(1, Commitment(announcement=digest(1)), attempt=1).frame(),
        MalformedMessage,
    ),
    "an announcement in an attempt": (signed(1, announcement(1), attempt=1).frame(), MalformedMessage),
    "an attestation in an attempt": (
        signed(1, Attestation(accepted=()), attempt=1).frame(),
        MalformedMessage,
    ),
    "a stranger's attestation": (signed(STRANGER, Attestation(accepted=())).frame(), MalformedMessage),
    "a stranger's prevote": (signed(STRANGER, Prevote(choice=b"")).frame(), MalformedMessage),
    "a stranger's precommit": (signed(STRANGER, Precommit(choice=b"")).frame(), MalformedMessage),
    "a proposal out of turn": (
        signed(OTHER_PROPOSER, Proposal(decision=decision(), valid_attempt=0)).frame(),
        MalformedMessage,
    ),
    "a proposal justified by its own attempt": (
        signed(PROPOSER, Proposal(decision=decision(), valid_attempt=1)).frame(),
        MalformedMessage,
    ),
    "a proposal of another round": (
        signed(PROPOSER, Proposal(decision=decision(round_=2), valid_attempt=0)).frame(),
        MalformedMessage,
    ),
    "a proposal on another chain": (
        signed(PROPOSER, Proposal(decision=decision(previous=digest(1)), valid_attempt=0)).frame(),
        MalformedMessage,
    ),
    "a proposal with too few deltas": (
        signed(PROPOSER, Proposal(decision=decision(1), valid_attempt=0)).frame(),
        MalformedMessage,
    ),
    "a proposal with too few attesters": (
        signed(
            PROPOSER, Proposal(decision=decision(attesters=CHARTER.founders[:2]), valid_attempt=0)
        ).frame(),
        MalformedMessage,
    ),
    "a proposal with an attester from outside": (
        signed(
            PROPOSER,
            Proposal(
                decision=decision(attesters=tuple(sorted((*CHARTER.founders[:2], key_of(STRANGER).peer)))),
                valid_attempt=0,
            ),
        ).frame(),
        MalformedMessage,
    ),
    "a proposal that excludes a stranger": (
        signed(
            PROPOSER, Proposal(decision=decision(excluded=(key_of(STRANGER).peer,)), valid_attempt=0)
        ).frame(),
        MalformedMessage,
    ),
    "a proposal with a delta of whom it excludes": (
        signed(
            PROPOSER, Proposal(decision=decision(1, 2, excluded=(key_of(2).peer,)), valid_attempt=0)
        ).frame(),
        MalformedMessage,
    ),
    "a void proposal that changes the adapter": (
        signed(PROPOSER, Proposal(decision=decision(adapter=digest(3)), valid_attempt=0)).frame(),
        MalformedMessage,
    ),
    "a delta of the future": (signed(1, announcement(1, trained_round=2)).frame(), MalformedMessage),
    "a delta of round 0": (signed(1, announcement(1, trained_round=0)).frame(), MalformedMessage),
    "a delta on another adapter": (
        signed(1, announcement(1, base_adapter=digest(8))).frame(),
        MalformedMessage,
    ),
    "a forged announcement": (bad_signature(signed(1, announcement(1))), BadSignature),
    "a forged vote": (bad_signature(signed(1, Prevote(choice=b""))), BadSignature),
    "a forged vote of the next round": (
        bad_signature(signed(1, Prevote(choice=b""), round_=2)),
        BadSignature,
    ),
    "a message of a closed round": (signed(1, Prevote(choice=b""), round_=0).frame(), Untimely),
    "a certificate of another swarm": (
        certificate(decision()).model_copy(update={"swarm": digest(4)}).frame(),
        MalformedMessage,
    ),
    "a certificate with too few signatures": (
        certificate(decision(), signers=(1, 2)).frame(),
        MalformedMessage,
    ),
    "a certificate signed by a stranger": (
        certificate(decision(), signers=(1, 2, STRANGER)).frame(),
        MalformedMessage,
    ),
    "a certificate on another chain": (
        certificate(decision(previous=digest(2))).frame(),
        MalformedMessage,
    ),
    "a void certificate that changes the adapter": (
        certificate(decision(adapter=digest(3))).frame(),
        MalformedMessage,
    ),
    "a certificate whose signatures are of another attempt": (
        certificate(decision()).model_copy(update={"attempt": 1}).frame(),
        BadSignature,
    ),
    "a certificate of a closed round": (certificate(decision(round_=0)).frame(), Untimely),
}


def state(of: Node) -> object:
    return of.status(), of.heads(), of.next_wake(), of.phase, of.head


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_frame_changes_nothing(name):
    frame, error = REFUSED[name]
    refusing = node()
    before = state(refusing)
    with pytest.raises(error):
        refusing.receive(1.0, frame, key_of(1).peer)
    assert state(refusing) == before


def test_the_same_frame_again_is_untimely():
    taking = node()
    frame = signed(1, announcement(1)).frame()
    taking.receive(1.0, frame, None)
    with pytest.raises(Untimely):
        taking.receive(1.0, frame, None)


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


def test_a_delta_that_was_not_committed_to_in_time_is_not_attested():
    made, _ = revealing_node(1)
    made.receive(6.0, commitment(2).frame(), None)
    effects = made.receive(6.0, signed(2, announcement(2)).frame(), None)
    assert not of_type(effects, FetchDelta)
    made.receive(6.0, signed(1, announcement(1)).frame(), None)
    effects = made.delta_checked(6.5, signed(1, announcement(1)).id, None)
    assert accepted_by(effects) == {signed(n, announcement(n)).id for n in (0, 1)}


def test_a_two_faced_commitment_counts_for_nothing():
    made, _ = revealing_node(2)
    for face in (signed(1, announcement(1)).id, digest(4)):
        made.receive(6.0, signed(1, Commitment(announcement=face)).frame(), None)
    assert key_of(1).peer not in made.status().committed


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


def accepted_by(effects: list[Effect]) -> set[bytes]:
    """What the one attestation among ``effects`` accepts."""
    [stored] = [effect for effect in of_type(effects, StoreOwn) if effect.kind == Kind.ATTESTATION]
    return set(Attestation.decode(decode_frame(stored.frame).body).accepted)


def test_every_own_message_is_stored_before_it_is_sent():
    effects = attesting_node()[1]
    stored: set[bytes] = set()
    for effect in effects:
        if isinstance(effect, StoreOwn):
            stored.add(effect.frame)
        elif isinstance(effect, Broadcast):
            assert effect.frame in stored


def revealing_node(*numbers: int) -> tuple[Node, list[Effect]]:
    """A member that has announced, and knows the commitments of ``numbers``; with what it did on the way."""
    made = node()
    effects = made.trained(5.0, round_=1, delta=digest(0), figures=FIGURES)
    for number in numbers:
        effects += made.receive(5.0, commitment(number).frame(), None)
    return made, effects


def attesting_node() -> tuple[Node, list[Effect]]:
    """A member that has announced, and holds the delta of 1; with what it did on the way."""
    made, effects = revealing_node(1)
    effects += made.receive(5.0, signed(1, announcement(1)).frame(), None)
    effects += made.delta_checked(6.0, signed(1, announcement(1)).id, None)
    return made, effects


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


def test_anyone_may_announce():
    made = revealing_node(STRANGER)[0]
    effects = made.receive(5.0, signed(STRANGER, announcement(STRANGER)).frame(), None)
    assert of_type(effects, FetchDelta)


def test_attests_once_nothing_more_can_come():
    made, effects = attesting_node()
    assert accepted_by(effects) == {signed(n, announcement(n)).id for n in (0, 1)}
    assert made.phase is Phase.ATTEST


def waiting_node() -> Node:
    """A member with its own delta and 1's commitment, that waits for 2, who trains."""
    made = node()
    made.answer(key_of(2).peer, TRAINS)
    made.trained(5.0, round_=1, delta=digest(0), figures=FIGURES)
    made.receive(5.0, commitment(1).frame(), None)
    assert made.phase is Phase.TRAIN
    return made


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


def test_waits_on_with_too_few_commitments_for_a_slate_and_does_not_ask_to_be_woken():
    made = node()
    made.trained(5.0, round_=1, delta=digest(0), figures=FIGURES)
    made.tick(20.0)
    made.tick(500.0)
    assert made.phase is Phase.TRAIN
    assert made.next_wake() > 500.0


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


def test_a_certificate_closes_the_round_and_opens_the_next():
    made = node()
    closing = certificate(decision(1, 2))
    effects = made.receive(3.0, closing.frame(), None)
    assert of_type(effects, StoreCertificate) == [StoreCertificate(closing)]
    assert of_type(effects, Closed) == [Closed(closing, False)]
    [fetch] = of_type(effects, FetchAdapter)
    assert fetch.adapter == digest(77)
    assert not of_type(effects, Train)
    assert made.round_ == 2
    assert made.adapter_ready(4.0, digest(77)) == []


def test_trains_for_the_next_round_when_the_adapter_is_there_and_the_last_training_is_done():
    made = node()
    made.trained(2.0, round_=1, delta=digest(0), figures=FIGURES)
    made.receive(3.0, certificate(decision(0, 2)).frame(), None)
    assert of_type(made.adapter_ready(4.0, digest(77)), Train) == [Train(2, digest(77))]


def test_a_delta_in_the_slate_is_included():
    made = node()
    made.trained(2.0, round_=1, delta=digest(0), figures=FIGURES)
    effects = made.receive(3.0, certificate(decision(0, 2)).frame(), None)
    assert of_type(effects, Closed)[0].included


def test_a_delta_that_missed_the_slate_is_announced_again():
    made = node()
    made.trained(2.0, round_=1, delta=digest(0), figures=FIGURES)
    effects = made.receive(3.0, certificate(decision(1, 2)).frame(), None)
    stored = of_type(effects, StoreOwn)
    assert [effect.kind for effect in stored] == [Kind.ANNOUNCEMENT, Kind.COMMITMENT]
    message = decode_frame(stored[0].frame)
    assert (message.round_, message.body) == (2, announcement(0).encode())


def test_training_that_ends_late_is_announced_in_the_open_round():
    made = node()
    made.receive(3.0, certificate(decision(1, 2)).frame(), None)
    effects = made.trained(9.0, round_=1, delta=digest(0), figures=FIGURES)
    message = decode_frame(of_type(effects, StoreOwn)[0].frame)
    assert (message.round_, message.body) == (2, announcement(0).encode())


def chain_of_voids(length: int) -> list[Certificate]:
    """Certified void rounds; the committee stays the founders."""
    found: list[Certificate] = []
    for round_ in range(1, length + 1):
        previous = found[-1].id if found else SWARM
        found.append(certificate(decision(round_=round_, previous=previous)))
    return found


def test_a_delta_that_is_too_old_is_dropped_and_training_starts_afresh():
    made = node()
    made.trained(2.0, round_=1, delta=digest(0), figures=FIGURES)
    effects: list[Effect] = []
    for closing in chain_of_voids(3):
        effects = made.receive(3.0, closing.frame(), None)
    assert made.round_ == 4
    assert of_type(effects, Train) == [Train(4, GENESIS_ADAPTER)]
    assert not of_type(effects, StoreOwn)


def test_a_closed_round_never_changes_and_a_fork_is_reported_once():
    made = node()
    made.receive(3.0, certificate(decision(1, 2)).frame(), None)
    head = made.head
    other = certificate(decision(2, 3))
    assert of_type(made.receive(4.0, other.frame(), None), Fork) == [Fork(head, other)]
    assert made.head == head
    with pytest.raises(Untimely):
        made.receive(5.0, other.frame(), None)


def test_another_quorum_for_the_same_decision_is_no_fork():
    made = node()
    made.receive(3.0, certificate(decision(1, 2)).frame(), None)
    with pytest.raises(Untimely):
        made.receive(4.0, certificate(decision(1, 2), signers=(0, 1, 2)).frame(), None)


def test_messages_of_the_next_round_wait_until_it_opens():
    made = node()
    early = signed(1, announcement(1, trained_round=2, base_adapter=digest(77)), round_=2)
    made.receive(2.0, early.frame(), None)
    assert not made.status().authors
    made.receive(3.0, certificate(decision(1, 2)).frame(), None)
    assert [author.author for author in made.status().authors] == [key_of(1).peer]


def test_an_author_can_fill_only_its_share_of_the_messages_that_wait():
    made = node(now=0.0)
    for attempt in range(MAX_EARLY_PER_AUTHOR):
        made.receive(2.0, signed(1, Prevote(choice=b""), round_=2, attempt=attempt).frame(), None)
    with pytest.raises(Untimely):
        made.receive(2.0, signed(1, Prevote(choice=b""), round_=2, attempt=99).frame(), None)


def test_a_peer_that_is_ahead_is_asked_for_certificates_once_in_a_while():
    made = node()
    frame = signed(1, Prevote(choice=b""), round_=5).frame()
    [asked] = of_type(made.receive(2.0, frame, key_of(1).peer), Request)
    assert isinstance(decode_request(asked.data), CertificatesRequest)
    with pytest.raises(Untimely):
        made.receive(2.1, frame, key_of(1).peer)
    assert of_type(made.receive(4.0, frame, key_of(1).peer), Request)


def test_new_peers_are_asked_for_their_heads():
    made = node()
    effects = made.peers_changed(1.0, PEERS | {key_of(8).peer})
    assert of_type(effects, Request) == [Request(key_of(8).peer, made.heads())]


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


def proof_against(number: int, *faces: int) -> Evidence:
    made = node()
    for face in faces:
        effects = made.receive(1.0, signed(number, Prevote(choice=digest(face))).frame(), None)
    return of_type(effects, StoreEvidence)[0].evidence


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


def test_a_proof_is_carried_into_the_next_round():
    made, other = node(), node()
    made.receive(1.0, proof_against(2, 1, 2).frame(), None)
    for each in (made, other):
        each.receive(2.0, certificate(decision(1, 2)).frame(), None)
    assert made.heads() != other.heads()
    exchange(other, made)
    assert made.heads() == other.heads()


def test_forged_evidence_is_refused():
    made = node()
    made.receive(1.0, signed(1, Prevote(choice=b"")).frame(), None)
    effects = made.receive(2.0, signed(1, Prevote(choice=digest(1))).frame(), None)
    proof = of_type(effects, StoreEvidence)[0].evidence
    framed = proof.model_copy(update={"author": key_of(2).peer})
    with pytest.raises(BadSignature):
        node().receive(1.0, framed.frame(), None)


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


def test_a_node_serves_the_part_of_its_chain_that_is_asked_for():
    chain = chain_of_voids(5)
    serving = node(certificates=chain)
    asked = CertificatesRequest(swarm=SWARM, first=3, count=2)
    answered = decode_response(serving.answer(key_of(1).peer, encode_sync(asked)))
    assert answered == Frames(frames=tuple(closing.frame() for closing in chain[2:4]))
    asked = CertificatesRequest(swarm=SWARM, first=0, count=10)
    assert decode_response(serving.answer(key_of(1).peer, encode_sync(asked))) == Frames(frames=())
