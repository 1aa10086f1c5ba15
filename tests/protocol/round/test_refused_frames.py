"""A frame that is refused changes nothing, whatever is wrong with it."""

from __future__ import annotations

import pytest

from sterna_protocol.errors import BadSignature, MalformedMessage, Untimely
from sterna_protocol.node import Node
from sterna_protocol.wire.messages import Attestation, Commitment, Kind, Precommit, Prevote, Proposal
from tests.support.founders import (
    CHARTER,
    OTHER_PROPOSER,
    PROPOSER,
    STRANGER,
    announcement,
    bad_signature,
    certificate,
    decision,
    digest,
    node,
    signed,
)
from tests.support.virtual_peer import key_of

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
