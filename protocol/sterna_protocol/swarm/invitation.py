"""The invitation in a ticket: an invite with its private key, and the key of a private network.

Whoever holds the ticket can join by it.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from sterna_protocol.errors import LocalProtocolError, MalformedMessage
from sterna_protocol.swarm.charter import Charter
from sterna_protocol.swarm.ticket import MAX_INVITE_BYTES
from sterna_protocol.wire import signing
from sterna_protocol.wire.acts import Act, Admission, Invite, make_invite, sign_act
from sterna_protocol.wire.encoding import Record
from sterna_protocol.wire.ids import ID_BYTES, sha256

STANDING_USES = 16
STANDING_ROUNDS = 1000
"""What the invite of a founder's own ticket is good for; `sterna invite` makes others."""


Secret = Annotated[bytes, Field(max_length=ID_BYTES)]
"""32 bytes, or none."""


class Invitation(Record):
    """At most one invite, with the ``seed`` of its key; ``network_key`` is empty but in a private network,
    where nobody can look on without it."""

    max_bytes: ClassVar[int] = MAX_INVITE_BYTES

    invites: Annotated[tuple[Invite, ...], Field(max_length=1)]
    seed: Secret
    network_key: Secret

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.seed) != ID_BYTES * len(self.invites):
            raise ValueError(f"a seed of {len(self.seed)} bytes for {len(self.invites)} invites")
        if len(self.network_key) not in (0, ID_BYTES):
            raise ValueError(f"a network key is {ID_BYTES} bytes or none, got {len(self.network_key)}")
        return self

    def admit(self, joiner: signing.SigningKey, swarm: bytes) -> Act:
        """The act that lets ``joiner`` in.

        Raises:
            LocalProtocolError: there is no invite.
        """
        if not self.invites:
            raise LocalProtocolError("an invitation without an invite lets nobody in")
        body = Admission(invite=self.invites[0], joiner=joiner.peer)
        return sign_act(body, signing.SigningKey.from_seed(self.seed), joiner, swarm=swarm)


def decode_invitation(data: bytes, swarm: bytes) -> Invitation:
    """The invitation in a ticket of ``swarm``.

    Raises:
        MalformedMessage: not an invitation, or the seed is not that of its invite.
        BadSignature: the inviter did not make the invite for this swarm.
    """
    invitation = Invitation.decode(data)
    for invite in invitation.invites:
        if signing.SigningKey.from_seed(invitation.seed).peer != invite.key:
            raise MalformedMessage("invitation with the key of another invite")
        signing.verify(invite.inviter, invite.signature, invite.preimage(swarm))
    return invitation


def invite_with(
    inviter: signing.SigningKey, seed: bytes, *, swarm: bytes, uses: int, last_round: int, may_invite: int
) -> Invitation:
    """A new invitation of ``inviter``; ``seed`` is 32 bytes that nobody else knows.

    Raises:
        pydantic.ValidationError: a number is out of its range.
    """
    key = signing.SigningKey.from_seed(seed).peer
    invite = make_invite(inviter, key, swarm=swarm, uses=uses, last_round=last_round, may_invite=may_invite)
    return Invitation(invites=(invite,), seed=seed, network_key=b"")


def standing_invitation(founder: signing.SigningKey, charter: Charter) -> Invitation | None:
    """The invitation in a founder's own ticket, always the same; None if the charter lets nobody invite."""
    if charter.admission.quota == 0:
        return None
    secret = founder.sign(b"sterna/standing-invite/1\0" + charter.swarm_id)
    return invite_with(
        founder,
        sha256(b"sterna/standing-invite/1", secret),
        swarm=charter.swarm_id,
        uses=min(STANDING_USES, charter.admission.quota),
        last_round=STANDING_ROUNDS,
        may_invite=0,
    )
