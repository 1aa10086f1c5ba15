"""Acts: signed records that change who belongs to a swarm, once a certified decision names them.

An act belongs to no round: whoever holds it may bring it before the committee, as often as needed. What it
does is decided by the chain alone (swarm/roll.py).
"""

from __future__ import annotations

from enum import IntEnum
from functools import cached_property
from typing import Annotated, ClassVar

from pydantic import Field

from sterna_protocol.errors import LocalProtocolError, MalformedMessage
from sterna_protocol.wire import signing
from sterna_protocol.wire.encoding import Record
from sterna_protocol.wire.ids import PeerKey, Round, sha256
from sterna_protocol.wire.limits import MAX_ACT_BYTES, MAX_INVITE_USES

Signature = Annotated[bytes, Field(min_length=signing.SIGNATURE_BYTES, max_length=signing.SIGNATURE_BYTES)]
Uses = Annotated[int, Field(ge=1, le=MAX_INVITE_USES)]
Quota = Annotated[int, Field(ge=0, le=MAX_INVITE_USES)]


class ActKind(IntEnum):
    """First byte of an act's frame; apart from those of ``wire.messages.Kind``."""

    ADMISSION = 16
    REVOCATION = 17
    DEPARTURE = 18
    ROTATION = 19


class Invite(Record):
    """ "Whoever holds this key may join": made by ``inviter``, good for ``uses`` peers up to ``last_round``.

    ``key`` is the public half of a key that travels in the ticket; ``may_invite`` is how many each of the
    invited may invite in turn.
    """

    inviter: PeerKey
    key: PeerKey
    uses: Uses
    last_round: Round
    may_invite: Quota
    signature: Signature

    def preimage(self, swarm: bytes) -> bytes:
        """What the inviter signs: everything but the signature."""
        return b"".join(
            (
                b"sterna/invite/1\0",
                swarm,
                self.inviter,
                self.key,
                self.uses.to_bytes(4, "big"),
                self.last_round.to_bytes(4, "big"),
                self.may_invite.to_bytes(4, "big"),
            )
        )


class Admission(Record):
    """ "Let ``joiner`` in by this invite." Signed by the invite's key and by the joiner."""

    invite: Invite
    joiner: PeerKey

    @property
    def subject(self) -> bytes:
        return self.joiner

    @property
    def signers(self) -> tuple[bytes, ...]:
        return self.invite.key, self.joiner


class Revocation(Record):
    """ "Cut ``peer`` and everybody below it." Signed by ``revoker``: a founder, or one above it."""

    revoker: PeerKey
    peer: PeerKey

    @property
    def subject(self) -> bytes:
        return self.peer

    @property
    def signers(self) -> tuple[bytes, ...]:
        return (self.revoker,)


class Departure(Record):
    """ "I leave." ``since``: the round that admitted the peer, so that a return is not undone by a replay."""

    peer: PeerKey
    since: Round

    @property
    def subject(self) -> bytes:
        return self.peer

    @property
    def signers(self) -> tuple[bytes, ...]:
        return (self.peer,)


class Rotation(Record):
    """ "My key ``old`` is ``new`` from now on." Signed by both."""

    old: PeerKey
    new: PeerKey

    @property
    def subject(self) -> bytes:
        return self.old

    @property
    def signers(self) -> tuple[bytes, ...]:
        return self.old, self.new


ActBody = Admission | Revocation | Departure | Rotation
BODY_OF_ACT: dict[ActKind, type[ActBody]] = {
    ActKind.ADMISSION: Admission,
    ActKind.REVOCATION: Revocation,
    ActKind.DEPARTURE: Departure,
    ActKind.ROTATION: Rotation,
}
KIND_OF_ACT: dict[type[ActBody], ActKind] = {body: kind for kind, body in BODY_OF_ACT.items()}


class Act(Record):
    """One act: ``body`` is the encoding of the record that ``kind`` names, ``signatures`` are in the order of
    its signers."""

    max_bytes: ClassVar[int] = MAX_ACT_BYTES

    kind: Annotated[int, Field(ge=0, le=255)]
    body: Annotated[bytes, Field(max_length=MAX_ACT_BYTES)]
    signatures: Annotated[tuple[Signature, ...], Field(min_length=1, max_length=2)]

    @cached_property
    def content(self) -> ActBody:
        """The record inside.

        Raises:
            MalformedMessage: there is no act of this kind, or the body is not that kind's record.
        """
        try:
            body = BODY_OF_ACT[ActKind(self.kind)]
        except ValueError as error:
            raise MalformedMessage(f"no act has the kind {self.kind}") from error
        return body.decode(self.body)

    @cached_property
    def id(self) -> bytes:
        """Names the act by what was signed, not by the signatures."""
        return sha256(b"sterna/act-id/1", bytes((self.kind,)), self.body)

    def frame(self) -> bytes:
        return bytes((self.kind,)) + self.encode()

    def preimage(self, swarm: bytes) -> bytes:
        """What each signer signs."""
        return b"sterna/act/1\0" + swarm + bytes((self.kind,)) + sha256(b"sterna/act-body/1", self.body)

    def verify(self, swarm: bytes, verify: signing.Verify = signing.verify) -> None:
        """Return if all its signers signed it, and the inviter the invite of an admission.

        Raises:
            MalformedMessage: it is not an act, or has another number of signatures than signers.
            BadSignature: somebody did not sign.
        """
        body = self.content
        signers = body.signers
        # [REJECT] There is a signature of each signer
        if len(self.signatures) != len(signers):
            raise MalformedMessage(f"act with {len(self.signatures)} signatures of {len(signers)} signers")
        # [REJECT] The inviter made the invite
        if isinstance(body, Admission):
            verify(body.invite.inviter, body.invite.signature, body.invite.preimage(swarm))
        # [REJECT] Each signer signed
        for signer, signature in zip(signers, self.signatures, strict=True):
            verify(signer, signature, self.preimage(swarm))


def is_act_frame(frame: bytes) -> bool:
    """Whether a frame's first byte is that of an act."""
    return frame[:1] in _FIRST_BYTES


_FIRST_BYTES = frozenset(bytes((kind,)) for kind in ActKind)


def decode_act(frame: bytes) -> Act:
    """The act in a frame; its signatures are NOT verified here.

    Raises:
        MalformedMessage: too long, or not an act in its one encoding.
    """
    # [REJECT] The frame is no longer than an act
    if not 1 < len(frame) <= 1 + MAX_ACT_BYTES:
        raise MalformedMessage(f"act of {len(frame)} bytes, the limit is {1 + MAX_ACT_BYTES}")
    act = Act.decode(frame[1:])
    # [REJECT] The kind outside, for routing, is the kind that was signed
    if act.kind != frame[0]:
        raise MalformedMessage(f"frame of kind {frame[0]} carries an act of kind {act.kind}")
    # [REJECT] The body is the record of that kind
    _ = act.content
    return act


def make_invite(
    inviter: signing.SigningKey, key: bytes, *, swarm: bytes, uses: int, last_round: int, may_invite: int
) -> Invite:
    """An invite of ``inviter`` for whoever holds the private half of ``key``.

    Raises:
        pydantic.ValidationError: a number is out of its range.
    """
    unsigned = Invite(
        inviter=inviter.peer,
        key=key,
        uses=uses,
        last_round=last_round,
        may_invite=may_invite,
        signature=bytes(signing.SIGNATURE_BYTES),
    )
    return unsigned.model_copy(update={"signature": inviter.sign(unsigned.preimage(swarm))})


def sign_act(body: ActBody, *keys: signing.SigningKey, swarm: bytes) -> Act:
    """``body``, signed by all its signers, whose ``keys`` come in any order.

    Raises:
        LocalProtocolError: a signer's key is missing.
    """
    by_peer = {key.peer: key for key in keys}
    missing = [signer for signer in body.signers if signer not in by_peer]
    if missing:
        raise LocalProtocolError(f"no key to sign an act for {missing[0].hex()[:8]}")
    unsigned = Act(
        kind=KIND_OF_ACT[type(body)],
        body=body.encode(),
        signatures=tuple(bytes(signing.SIGNATURE_BYTES) for _ in body.signers),
    )
    preimage = unsigned.preimage(swarm)
    signatures = tuple(by_peer[signer].sign(preimage) for signer in body.signers)
    return unsigned.model_copy(update={"signatures": signatures})
