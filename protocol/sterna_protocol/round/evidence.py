"""Evidence: two different signed messages for one place prove that their author is two-faced."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

from sterna_protocol.round.certificate import Verify
from sterna_protocol.wire import signing
from sterna_protocol.wire.ids import sha256
from sterna_protocol.wire.messages import Body, Evidence, Signed, decode_body


class Place(NamedTuple):
    """Where an author may sign one message and no other."""

    round_: int
    attempt: int
    kind: int
    author: bytes

    @property
    def conflict_id(self) -> bytes:
        """Stands for the two-faced place in the set of a round: the same whichever two messages were seen."""
        return sha256(
            b"sterna/conflict/1",
            self.round_.to_bytes(4, "big"),
            self.attempt.to_bytes(2, "big"),
            self.kind.to_bytes(1, "big"),
            self.author,
        )


def proof_id(author: bytes) -> bytes:
    """Stands for a proof against ``author`` out of an earlier round, the same whichever it is."""
    return sha256(b"sterna/proof/1", author)


@dataclass(frozen=True, slots=True)
class Held:
    """A signed message with what was computed from it."""

    message: Signed
    body: Body
    id: bytes
    frame: bytes
    place: Place


def place_of(item: Signed | Evidence) -> Place:
    """The place that a message takes, or that evidence is about."""
    return Place(item.round_, item.attempt, item.kind, item.author)


def hold(message: Signed, frame: bytes | None = None) -> Held:
    """``message`` with its body decoded.

    Raises:
        MalformedMessage: the body is not what the kind says.
    """
    body = decode_body(message)
    return Held(message, body, message.id, message.frame() if frame is None else frame, place_of(message))


def verify_held(held: Held, verify: Verify = signing.verify) -> None:
    """Return if the named author signed it; raises BadSignature."""
    verify(held.message.author, held.message.signature, held.message.preimage())


def make_evidence(one: Held, other: Held) -> Evidence:
    """The proof from two different messages of one place."""
    sides = sorted(
        (hashlib.sha256(held.message.body).digest(), held.message.signature) for held in (one, other)
    )
    (first_body, first_signature), (second_body, second_signature) = sides
    message = one.message
    return Evidence(
        kind=message.kind,
        swarm=message.swarm,
        round_=message.round_,
        attempt=message.attempt,
        author=message.author,
        first_body=first_body,
        first_signature=first_signature,
        second_body=second_body,
        second_signature=second_signature,
    )
