"""The messages of a swarm and their frames.

A frame is one byte, the kind, and the canonical encoding of the record of that kind. ``Signed`` carries every
message that has one author; a ``Certificate`` speaks through the signatures inside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from enum import IntEnum
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Self, TypeVar

from pydantic import Field, model_validator

from sterna_protocol.errors import LocalProtocolError, MalformedMessage
from sterna_protocol.wire import signing
from sterna_protocol.wire.acts import Act, decode_act, is_act_frame
from sterna_protocol.wire.encoding import Record
from sterna_protocol.wire.ids import ID_BYTES, Attempt, Digest, PeerKey, Round, sha256, short
from sterna_protocol.wire.limits import (
    MAX_ANNOUNCEMENTS,
    MAX_CHANGES,
    MAX_COMMITTEE,
    MAX_EXCLUDED,
    MAX_FRAME_BYTES,
    MAX_SLATE,
)

Signature = Annotated[bytes, Field(min_length=signing.SIGNATURE_BYTES, max_length=signing.SIGNATURE_BYTES)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Choice = Annotated[bytes, Field(max_length=ID_BYTES)]
"""The id of a decision (32 bytes), or empty: no decision in this attempt."""


class Kind(IntEnum):
    """First byte of a frame, and the role inside a signature's preimage."""

    ANNOUNCEMENT = 1
    ATTESTATION = 2
    PROPOSAL = 3
    PREVOTE = 4
    PRECOMMIT = 5
    CERTIFICATE = 6
    EVIDENCE = 7
    COMMITMENT = 8
    REFORM = 9


class Figures(Record):
    """What the author says of its own training: shown, never trusted."""

    loss_before_micronats: Count
    loss_after_micronats: Count
    steps: Count
    tokens: Count
    milliseconds: Count


class Announcement(Record):
    """ "My delta for this round is this blob." """

    delta: Digest
    trained_round: Round
    base_adapter: Digest
    figures: Figures


class Commitment(Record):
    """ "I will announce this": the id of an announcement that is signed and stored, but not sent yet.

    The id hides the announcement, for nobody can guess the digest of a delta.
    """

    announcement: Digest


class Attestation(Record):
    """ "I hold, checked and will serve these announced deltas": ids of announcements, ascending."""

    accepted: Annotated[tuple[Digest, ...], Field(max_length=MAX_ANNOUNCEMENTS)]

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        return _require_ascending(self, self.accepted)


class SlateEntry(Record):
    """One delta of a slate and where it comes from."""

    author: PeerKey
    announcement: Digest
    delta: Digest
    trained_round: Round


class Decision(Record):
    """What a round ends with: the slate, who attested it, and the adapter that its merge gives.

    An empty slate is a void round: the adapter stays what it was. ``excluded`` are the peers that were proven
    two-faced in this round or before: they take no part any more. ``changes`` are the acts that it carries
    out, one after the other: who comes, goes, is cut off, has a new key; they hold for its own entries too.
    ``committee`` is empty, but in a reform: a void decision by which the founders name who decides the next
    round, when no quorum can be reached.
    """

    round_: Round
    previous: Digest
    entries: Annotated[tuple[SlateEntry, ...], Field(max_length=MAX_SLATE)]
    attesters: Annotated[tuple[PeerKey, ...], Field(max_length=MAX_COMMITTEE)]
    adapter: Digest
    excluded: Annotated[tuple[PeerKey, ...], Field(max_length=MAX_EXCLUDED)] = ()
    changes: Annotated[tuple[Act, ...], Field(max_length=MAX_CHANGES)] = ()
    committee: Annotated[tuple[PeerKey, ...], Field(max_length=MAX_COMMITTEE)] = ()

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        _require_ascending(self, tuple(entry.author for entry in self.entries))
        _require_ascending(self, self.excluded)
        _require_ascending(self, self.committee)
        return _require_ascending(self, self.attesters)

    @cached_property
    def id(self) -> bytes:
        """The digest that votes name and the next round's ``previous`` repeats."""
        return sha256(b"sterna/decision/1", self.encode())

    @property
    def is_reform(self) -> bool:
        return bool(self.committee)

    @property
    def is_void(self) -> bool:
        return not self.entries


class Proposal(Record):
    """The proposer's decision for one attempt.

    ``valid_attempt`` is one more than the attempt in which a quorum prevoted it, 0 for a new decision
    (Tendermint's validRound, arXiv:1807.04938).
    """

    decision: Decision
    valid_attempt: Attempt


class Prevote(Record):
    """First vote of an attempt."""

    choice: Choice

    @model_validator(mode="after")
    def _id_or_empty(self) -> Self:
        return _require_id_or_empty(self, self.choice)


class Precommit(Record):
    """Second vote of an attempt; a quorum of them for one decision is its certificate."""

    choice: Choice

    @model_validator(mode="after")
    def _id_or_empty(self) -> Self:
        return _require_id_or_empty(self, self.choice)


class CommitSignature(Record):
    """One member's precommit, reduced to what cannot be derived."""

    member: PeerKey
    signature: Signature


class Certificate(Record):
    """A quorum of precommits for one decision: the round is final. Signatures ascend by member."""

    swarm: Digest
    attempt: Attempt
    decision: Decision
    signatures: Annotated[tuple[CommitSignature, ...], Field(min_length=1, max_length=MAX_COMMITTEE)]

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        return _require_ascending(self, tuple(entry.member for entry in self.signatures))

    @property
    def id(self) -> bytes:
        """The decision's id: two certificates of one decision differ only in who signed."""
        return self.decision.id

    @property
    def round_(self) -> int:
        return self.decision.round_

    def frame(self) -> bytes:
        return bytes((Kind.CERTIFICATE,)) + self.encode()


class Signed(Record):
    """A message with one author. ``body`` is the encoding of the record that ``kind`` names."""

    kind: Annotated[int, Field(ge=0, le=255)]
    swarm: Digest
    round_: Round
    attempt: Attempt
    author: PeerKey
    body: Annotated[bytes, Field(max_length=MAX_FRAME_BYTES)]
    signature: Signature

    def preimage(self) -> bytes:
        """What the author signs."""
        return self.signed_bytes

    @cached_property
    def signed_bytes(self) -> bytes:
        return signing.preimage(
            swarm=self.swarm,
            round_=self.round_,
            attempt=self.attempt,
            kind=self.kind,
            author=self.author,
            body=self.body,
        )

    @cached_property
    def id(self) -> bytes:
        """Names the message by what was signed, not by the signature."""
        return sha256(b"sterna/message/1", self.signed_bytes)

    @cached_property
    def content(self) -> Body:
        """The record inside; raises MalformedMessage as ``decode_body``, which returns it."""
        try:
            body = BODY_OF_KIND[Kind(self.kind)]
        except (ValueError, KeyError) as error:
            raise MalformedMessage(f"no signed message has the kind {self.kind}") from error
        return body.decode(self.body)

    def frame(self) -> bytes:
        return bytes((self.kind,)) + self.encode()


class Evidence(Record):
    """Two different messages that one author signed for one (swarm, round, attempt, kind).

    The messages stand for themselves by the digests of their bodies, ascending: a proof takes 340 bytes,
    however large they are.
    """

    kind: Annotated[int, Field(ge=0, le=255)]
    swarm: Digest
    round_: Round
    attempt: Attempt
    author: PeerKey
    first_body: Digest
    first_signature: Signature
    second_body: Digest
    second_signature: Signature

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        return _require_ascending(self, (self.first_body, self.second_body))

    def frame(self) -> bytes:
        return bytes((Kind.EVIDENCE,)) + self.encode()

    def verify(self, verify: Callable[[bytes, bytes, bytes], None] = signing.verify) -> None:
        """Return if ``author`` signed both messages. ``verify``: ``signing.verify``, or an equal function.

        Raises:
            BadSignature: it did not.
        """
        for body_digest, signature in (
            (self.first_body, self.first_signature),
            (self.second_body, self.second_signature),
        ):
            signed = signing.preimage_of_digest(
                swarm=self.swarm,
                round_=self.round_,
                attempt=self.attempt,
                kind=self.kind,
                author=self.author,
                body_digest=body_digest,
            )
            verify(self.author, signature, signed)


T = TypeVar("T")
Body = Announcement | Attestation | Proposal | Prevote | Precommit | Commitment
BODY_OF_KIND: dict[Kind, type[Body]] = {
    Kind.ANNOUNCEMENT: Announcement,
    Kind.ATTESTATION: Attestation,
    Kind.PROPOSAL: Proposal,
    Kind.PREVOTE: Prevote,
    Kind.PRECOMMIT: Precommit,
    Kind.COMMITMENT: Commitment,
}
KIND_OF_BODY: dict[type[Body], Kind] = {body: kind for kind, body in BODY_OF_KIND.items()}


def sign(key: signing.SigningKey, *, swarm: bytes, round_: int, attempt: int, body: Body) -> Signed:
    """``body``, signed by ``key`` for this swarm, round and attempt."""
    kind = KIND_OF_BODY[type(body)]
    encoded = body.encode()
    signed_bytes = signing.preimage(
        swarm=swarm, round_=round_, attempt=attempt, kind=kind, author=key.peer, body=encoded
    )
    return Signed(
        kind=kind,
        swarm=swarm,
        round_=round_,
        attempt=attempt,
        author=key.peer,
        body=encoded,
        signature=key.sign(signed_bytes),
    )


def prove(first: Signed, second: Signed) -> Evidence:
    """The proof that the author of two messages said two things in one place.

    Raises:
        LocalProtocolError: the messages are equal, or of different places or authors.
    """
    place = _place(first)
    if place != _place(second) or first.body == second.body:
        raise LocalProtocolError(f"messages {short(first.id)} and {short(second.id)} do not contradict")
    halves = sorted((hashlib.sha256(message.body).digest(), message.signature) for message in (first, second))
    kind, swarm, round_, attempt, author = place
    return Evidence(
        kind=kind,
        swarm=swarm,
        round_=round_,
        attempt=attempt,
        author=author,
        first_body=halves[0][0],
        first_signature=halves[0][1],
        second_body=halves[1][0],
        second_signature=halves[1][1],
    )


def decode_body(message: Signed) -> Body:
    """The record inside a signed message.

    Raises:
        MalformedMessage: the kind has no author, or the body is not that kind's record.
    """
    return message.content


Item = Signed | Certificate | Evidence | Act
"""What a frame carries."""


def decode_frame(frame: bytes) -> Item:
    """What a frame carries; signatures are NOT verified here.

    Raises:
        MalformedMessage: too long, an unknown kind, or a malformed record.
    """
    # [REJECT] The frame is within the gossip limit
    if not 1 < len(frame) <= MAX_FRAME_BYTES:
        raise MalformedMessage(f"frame of {len(frame)} bytes, the limit is {MAX_FRAME_BYTES}")
    if is_act_frame(frame):
        return decode_act(frame)
    if frame[0] == Kind.CERTIFICATE:
        return Certificate.decode(frame[1:])
    if frame[0] == Kind.EVIDENCE:
        return Evidence.decode(frame[1:])
    message = Signed.decode(frame[1:])
    # [REJECT] The kind outside, for routing, is the kind that was signed
    if message.kind != frame[0]:
        raise MalformedMessage(f"frame of kind {frame[0]} carries a message of kind {message.kind}")
    return message


def _place(message: Signed) -> tuple[int, bytes, int, int, bytes]:
    return message.kind, message.swarm, message.round_, message.attempt, message.author


def _require_ascending(record: T, keys: tuple[bytes, ...]) -> T:
    if any(first >= second for first, second in pairwise(keys)):
        raise ValueError("entries must ascend without repeats")
    return record


def _require_id_or_empty(record: T, choice: bytes) -> T:
    if len(choice) not in (0, ID_BYTES):
        raise ValueError(f"a choice is empty or {ID_BYTES} bytes, got {len(choice)}")
    return record
