"""The crowd at the door: invites for all who are meant to come in, and the made-up peers of attackers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache

from sterna.simulate.peer import key_of
from sterna_protocol.node import Node
from sterna_protocol.swarm.charter import Charter
from sterna_protocol.swarm.invitation import Invitation, invite_with
from sterna_protocol.wire.acts import Act
from sterna_protocol.wire.messages import Announcement, Commitment, Figures, sign
from sterna_protocol.wire.signing import SigningKey

MADE_UP = 6
"""Names that an attacker makes up in each round."""

FIRST_MADE_UP = 1_000_000
"""Number of the first made-up key: beyond those of all peers."""

FIGURES = Figures(loss_before_micronats=3_000_000, loss_after_micronats=1, steps=1, tokens=1, milliseconds=1)


@cache
def invitation_of(charter: Charter, number: int) -> Invitation:
    """What the peer of this number was invited with, by one of the founders: it lets one peer in."""
    founders = {key_of(founder).peer: key_of(founder) for founder in range(len(charter.founders))}
    inviter = founders[charter.founders[number % len(charter.founders)]]
    seed = hashlib.sha256(b"invite %d" % number).digest()
    return invite_with(inviter, seed, swarm=charter.swarm_id, uses=1, last_round=2**32 - 1, may_invite=0)


def acts_of(charter: Charter, number: int) -> tuple[Act, ...]:
    """What the peer of this number brings to be let in; nothing in an open swarm, or of a founder."""
    key = key_of(number)
    if charter.admission.mode == "open" or key.peer in charter.founders:
        return ()
    return (invitation_of(charter, number).admit(key, charter.swarm_id),)


def made_up_keys(number: int, round_: int) -> list[SigningKey]:
    """The names that the attacker of this number makes up for a round."""
    first = FIRST_MADE_UP + (number * 10_000 + round_) * MADE_UP
    return [key_of(first + index) for index in range(MADE_UP)]


def made_up_frames(charter: Charter, number: int, node: Node) -> Iterator[tuple[SigningKey, bytes, bytes]]:
    """(key, delta, frame) of what made-up peers say: the one invite used again, a delta of each."""
    swarm, round_ = charter.swarm_id, node.round_
    for key in made_up_keys(number, round_):
        delta = hashlib.sha256(b"made up" + key.peer).digest()
        body = Announcement(
            delta=delta, trained_round=round_, base_adapter=node.head_adapter, figures=FIGURES
        )
        announcement = sign(key, swarm=swarm, round_=round_, attempt=0, body=body)
        commitment = Commitment(announcement=announcement.id)
        if charter.admission.mode != "open" and key_of(number).peer not in charter.founders:
            yield key, delta, invitation_of(charter, number).admit(key, swarm).frame()
        yield key, delta, sign(key, swarm=swarm, round_=round_, attempt=0, body=commitment).frame()
        yield key, delta, announcement.frame()
