"""A swarm of four founders: the node of one of them, and what the others and a stranger say to it."""

from __future__ import annotations

from sterna_protocol.node import Node
from sterna_protocol.round.certificate import make_certificate
from sterna_protocol.round.effects import Effect, StoreEvidence, StoreOwn
from sterna_protocol.round.heads import Heads, encode_sync
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
    Signed,
    SlateEntry,
    decode_frame,
    sign,
)
from tests.support.virtual_peer import FIGURES, GENESIS_ADAPTER, key_of, virtual_charter

ME, STRANGER = 0, 9
MEMBERS = (0, 1, 2, 3)
CHARTER = virtual_charter(tuple(sorted(key_of(number).peer for number in MEMBERS)))
SWARM = CHARTER.swarm_id
PEERS = frozenset(key_of(number).peer for number in (1, 2, 3))
PROPOSER, OTHER_PROPOSER = (
    next(number for number in MEMBERS if key_of(number).peer == member)
    for member in proposers(CHARTER.founders, SWARM)[:2]
)
"""Of the first and of the second attempt."""

TRAINS = encode_sync(Heads(swarm=SWARM, round_=1, head=SWARM, messages=SWARM, trains=True))
"""Heads of a peer that trains."""


def node(**changes: object) -> Node:
    """A founder's node before round 1, connected to the other three."""
    arguments = {"trains": True, "now": 0.0, "genesis_adapter": GENESIS_ADAPTER} | changes
    made = Node(CHARTER, key_of(ME), **arguments)  # type: ignore[arg-type]
    made.start(0.0)
    made.peers_changed(0.0, PEERS)
    return made


def signed(number: int, body: Body, *, round_: int = 1, attempt: int = 0, swarm: bytes = SWARM) -> Signed:
    return sign(key_of(number), swarm=swarm, round_=round_, attempt=attempt, body=body)


def digest(number: int) -> bytes:
    return number.to_bytes(32, "big")


def announcement(number: int, **changes: object) -> Announcement:
    values = {
        "delta": digest(number),
        "trained_round": 1,
        "base_adapter": GENESIS_ADAPTER,
        "figures": FIGURES,
    } | changes
    return Announcement(**values)  # type: ignore[arg-type]


def commitment(number: int) -> Signed:
    return signed(number, Commitment(announcement=signed(number, announcement(number)).id))


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


def chain_of_voids(length: int) -> list[Certificate]:
    """Certified void rounds; the committee stays the founders."""
    found: list[Certificate] = []
    for round_ in range(1, length + 1):
        previous = found[-1].id if found else SWARM
        found.append(certificate(decision(round_=round_, previous=previous)))
    return found


def bad_signature(frame_of: Signed) -> bytes:
    return frame_of.model_copy(update={"signature": bytes(64)}).frame()


def revealing_node(*numbers: int) -> tuple[Node, list[Effect]]:
    """A member that has announced, and knows the commitments of ``numbers``; with what it did on the way."""
    made = node()
    effects = made.trained(5.0, round_=1, delta=digest(0), figures=FIGURES)
    for number in numbers:
        effects += made.receive(5.0, commitment(number).frame(), None)
    return made, effects


def waiting_node() -> Node:
    """A member with its own delta and 1's commitment, that waits for 2, who trains."""
    made = node()
    made.answer(key_of(2).peer, TRAINS)
    made.trained(5.0, round_=1, delta=digest(0), figures=FIGURES)
    made.receive(5.0, commitment(1).frame(), None)
    assert made.phase is Phase.TRAIN
    return made


def attesting_node() -> tuple[Node, list[Effect]]:
    """A member that has announced, and holds the delta of 1; with what it did on the way."""
    made, effects = revealing_node(1)
    effects += made.receive(5.0, signed(1, announcement(1)).frame(), None)
    effects += made.delta_checked(6.0, signed(1, announcement(1)).id, None)
    return made, effects


def of_type(effects: list[Effect], kind: type) -> list:
    return [effect for effect in effects if isinstance(effect, kind)]


def accepted_by(effects: list[Effect]) -> set[bytes]:
    """What the one attestation among ``effects`` accepts."""
    [stored] = [effect for effect in of_type(effects, StoreOwn) if effect.kind == Kind.ATTESTATION]
    return set(Attestation.decode(decode_frame(stored.frame).body).accepted)


def proof_against(number: int, *faces: int) -> Evidence:
    """A proof that a founder prevoted for each of ``faces`` in attempt 0."""
    made = node()
    for face in faces:
        effects = made.receive(1.0, signed(number, Prevote(choice=digest(face))).frame(), None)
    return of_type(effects, StoreEvidence)[0].evidence
