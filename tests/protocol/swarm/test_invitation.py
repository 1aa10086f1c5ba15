"""The invitation in a ticket: who reads it can join, in the swarm it was made for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna_protocol.errors import BadSignature, LocalProtocolError, MalformedMessage
from sterna_protocol.swarm.invitation import (
    Invitation,
    decode_invitation,
    invite_with,
    standing_invitation,
)
from sterna_protocol.swarm.roll import Roll
from sterna_protocol.swarm.ticket import Ticket, decode_ticket, encode_ticket
from sterna_protocol.wire import signing
from sterna_protocol.wire.limits import MAX_INVITE_USES
from tests.support.charters import key, small_charter

CHARTER = small_charter(admission="invite")
SWARM = CHARTER.swarm_id
INVITATION = invite_with(key(1), b"s" * 32, swarm=SWARM, uses=2, last_round=9, may_invite=1)


def test_a_ticket_carries_it_and_whoever_reads_it_can_join() -> None:
    text = encode_ticket(Ticket(SWARM, (), invite=INVITATION.encode()))
    read = decode_invitation(decode_ticket(text).invite, SWARM)
    assert read == INVITATION
    roll = Roll.founding(CHARTER).changed([read.admit(key(5), SWARM)], 3, (), signing.verify)
    assert roll.may_announce(key(5).peer)


def test_the_largest_invitation_fits_a_ticket() -> None:
    most = MAX_INVITE_USES
    largest = invite_with(key(1), b"s" * 32, swarm=SWARM, uses=most, last_round=2**32 - 1, may_invite=most)
    encode_ticket(Ticket(SWARM, (), invite=largest.encode()))


def test_a_seed_of_another_invite_is_malformed() -> None:
    wrong = INVITATION.model_copy(update={"seed": b"t" * 32})
    with pytest.raises(MalformedMessage, match="another invite"):
        decode_invitation(wrong.encode(), SWARM)


def test_a_key_alone_lets_nobody_in_but_reaches_the_network() -> None:
    alone = Invitation(invites=(), seed=b"", network_key=b"k" * 32)
    assert decode_invitation(alone.encode(), SWARM) == alone
    with pytest.raises(LocalProtocolError, match="lets nobody in"):
        alone.admit(key(5), SWARM)


@pytest.mark.parametrize("change", [{"seed": b""}, {"invites": ()}, {"network_key": b"short"}])
def test_lengths_must_fit(change: dict[str, object]) -> None:
    with pytest.raises(MalformedMessage):
        decode_invitation(INVITATION.model_copy(update=change).encode(), SWARM)


def test_an_invitation_into_another_swarm_is_refused() -> None:
    with pytest.raises(BadSignature):
        decode_invitation(INVITATION.encode(), small_charter(name="another").swarm_id)


@given(st.binary(max_size=400))
def test_any_bytes_are_refused_or_canonical(data: bytes) -> None:
    try:
        read = decode_invitation(data, SWARM)
    except (MalformedMessage, BadSignature):
        return
    assert read.encode() == data


def test_a_founders_own_invitation_is_always_the_same() -> None:
    made = standing_invitation(key(1), CHARTER)
    assert isinstance(made, Invitation)
    assert made == standing_invitation(key(1), CHARTER)
    assert made.seed != getattr(standing_invitation(key(1), small_charter(name="another")), "seed", None)


def test_where_nobody_invites_there_is_none() -> None:
    assert standing_invitation(key(1), small_charter(invite_quota=0)) is None
