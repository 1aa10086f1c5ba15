"""Inviting, revoking, leaving: what a member of a swarm signs for others and for itself.

The node of the home may be running: nothing here needs its lock. An act is left in the home, where the node
finds it, or takes it up at its next start.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sterna.app.homes import open_home_for_reading
from sterna.app.names import find_peer
from sterna.app.observe import LAST_SWARM
from sterna.app.status import read_status
from sterna.errors import ConfigError
from sterna.store import NEXT_KEY, Disk, Store, WaitingActs, next_seed, reported
from sterna.swarm.light import genesis_digest
from sterna.wording import refusal
from sterna_protocol.errors import Untimely
from sterna_protocol.round.chain import Chain
from sterna_protocol.swarm.charter import Charter, SignedCharter
from sterna_protocol.swarm.invitation import Invitation, invite_with
from sterna_protocol.swarm.roll import Roll, Standing
from sterna_protocol.swarm.ticket import Ticket, decode_ticket, encode_ticket
from sterna_protocol.wire.acts import Act, ActBody, Departure, Revocation, Rotation, sign_act
from sterna_protocol.wire.ids import peer_name
from sterna_protocol.wire.messages import Certificate, decode_frame
from sterna_protocol.wire.signing import SigningKey


@dataclass(frozen=True, slots=True)
class Member:
    """This home's part in the swarm that it ran last, as its certificates say."""

    home: Path
    key: SigningKey
    charter: Charter
    chain: Chain
    addresses: tuple[str, ...]
    network_key: bytes

    @property
    def swarm(self) -> bytes:
        return self.charter.swarm_id

    @property
    def roll(self) -> Roll:
        return self.chain.roll

    def standing(self) -> Standing:
        """What the roll says of this peer.

        Raises:
            ConfigError: it is not on the roll.
        """
        standing = self.roll.listed.get(self.key.peer)
        if standing is None:
            raise ConfigError(
                "this peer is not in the swarm, as far as its certified rounds say: let its node run until "
                "`sterna peers` lists it, or join with a ticket of `sterna invite`"
            )
        return standing


def open_member(home: Path | None) -> Member:
    """What this home holds of the swarm that it ran last.

    Raises:
        ConfigError: it is in no swarm.
    """
    with open_home_for_reading(home) as store:
        last = store.setting(LAST_SWARM)
        if last is None:
            raise ConfigError(f"{store.home} is in no swarm: sterna join TICKET --data FILE")
        swarm = bytes.fromhex(last)
        charter = SignedCharter.decode(store.swarm(swarm).signed_charter).charter
        frames = [decode_frame(frame) for frame in store.certificates(swarm)]
        certificates = [frame for frame in frames if isinstance(frame, Certificate)]
        addresses: tuple[str, ...] = ()
        status = read_status(store.home)
        if status is not None and status.get("swarm") == last:
            addresses = decode_ticket(status["ticket"]).addresses
        return Member(
            home=store.home,
            key=SigningKey.from_seed(store.key()),
            charter=charter,
            chain=Chain(charter, genesis_digest(charter), certificates),
            addresses=addresses,
            network_key=network_key_of(store, swarm),
        )


def network_key_of(store: Store, swarm: bytes) -> bytes:
    """The key of a swarm's private network; empty if it has none."""
    return bytes.fromhex(store.setting(f"network_key.{swarm.hex()}") or "")


def put_network_key(store: Store, swarm: bytes, network_key: bytes) -> None:
    store.put_setting(f"network_key.{swarm.hex()}", network_key.hex())


def ticket_invitation(invitation: Invitation | None, network_key: bytes) -> bytes:
    """What a ticket carries: the invitation, if any, with the key of the private network, if any."""
    if invitation is None:
        return Invitation(invites=(), seed=b"", network_key=network_key).encode() if network_key else b""
    return invitation.model_copy(update={"network_key": network_key}).encode()


def invite(home: Path | None, *, uses: int, rounds: int, may_invite: int) -> dict[str, Any]:
    """A ticket that lets ``uses`` peers in, for ``rounds`` rounds from now on.

    Keys: ticket, uses, last_round, may_invite.

    Raises:
        ConfigError: this peer may not invite so many, or not at all.
    """
    member = open_member(home)
    standing, limits = member.standing(), member.charter.admission
    if not standing.inviter or standing.depth >= limits.max_depth:
        raise ConfigError(
            f"this peer cannot invite: the charter ends chains of invites {limits.max_depth} below a founder"
        )
    left = standing.may_invite - standing.invited
    if uses > left:
        raise ConfigError(f"this peer may invite {left} more, not {uses}: ask whoever invited it")
    if may_invite > limits.quota:
        raise ConfigError(f"--may-invite {may_invite} is over the charter's {limits.quota}")
    if not member.addresses:
        raise ConfigError("this home's node has not run yet, and a ticket needs its address: sterna resume")
    last_round = member.chain.round_ + rounds - 1
    try:
        invitation = invite_with(
            member.key,
            secrets.token_bytes(32),
            swarm=member.swarm,
            uses=uses,
            last_round=last_round,
            may_invite=may_invite,
        )
    except ValidationError as error:
        raise ConfigError(refusal(str(error.errors()[0]["loc"][0]), error)) from error
    head = member.chain.head
    ticket = Ticket(
        swarm=member.swarm,
        addresses=member.addresses,
        anchor_round=head.round_ if head else 0,
        anchor=head.id if head else b"",
        invite=ticket_invitation(invitation, member.network_key),
    )
    return {
        "ticket": encode_ticket(ticket),
        "uses": uses,
        "last_round": last_round,
        "may_invite": may_invite,
    }


def revoke(home: Path | None, peer: str) -> dict[str, Any]:
    """Sign the revocation of ``peer``, an id or its beginning, and leave it for this home's node.

    Keys: revoked, below (names of those who go with it).

    Raises:
        ConfigError: not a peer of the swarm, or this peer is neither above it nor a founder.
    """
    member = open_member(home)
    target = find_peer(peer, {*member.roll.listed, *member.roll.gone})
    if target in member.roll.founders:
        raise ConfigError(f"{peer_name(target)} is a founder, and nobody revokes one")
    _leave_for_node(member, Revocation(revoker=member.key.peer, peer=target))
    return {
        "revoked": peer_name(target),
        "below": [peer_name(other) for other in member.roll.below(target)[1:]],
    }


def leave(home: Path | None) -> dict[str, Any]:
    """Sign this peer's departure and leave it for this home's node.

    Keys: left, swarm.

    Raises:
        ConfigError: this peer is in no swarm, or not on its roll.
    """
    member = open_member(home)
    _leave_for_node(member, Departure(peer=member.key.peer, since=member.standing().since))
    return {"left": peer_name(member.key.peer), "swarm": member.swarm.hex()}


def rotate(home: Path | None) -> dict[str, Any]:
    """Make this home's next key, and leave the rotation to it for this home's node, in each of its swarms.

    The same key again until it is in force. Keys: old, new, swarms.

    Raises:
        ConfigError: this home has no key, or is in no swarm.
    """
    member = open_member(home)
    with open_home_for_reading(home) as store:
        swarms = [known.swarm for known in store.swarms()]
    path = member.home / NEXT_KEY
    with reported("the next key was not saved", path):
        new = SigningKey.from_seed(next_seed(path, Disk()))
    body = Rotation(old=member.key.peer, new=new.peer)
    try:
        member.roll.check(sign_act(body, member.key, new, swarm=member.swarm), member.chain.round_)
    except Untimely as refused:
        raise ConfigError(f"the swarm would refuse this: {refused}") from refused
    for swarm in swarms:
        WaitingActs(member.home, swarm).put(sign_act(body, member.key, new, swarm=swarm))
    return {
        "old": peer_name(member.key.peer),
        "new": peer_name(new.peer),
        "swarms": [swarm.hex() for swarm in swarms],
    }


def _leave_for_node(member: Member, body: ActBody) -> Act:
    act = sign_act(body, member.key, swarm=member.swarm)
    try:
        member.roll.check(act, member.chain.round_)
    except Untimely as refused:
        raise ConfigError(f"the swarm would refuse this: {refused}") from refused
    WaitingActs(member.home, member.swarm).put(act)
    return act


def describe_roll(roll: Roll) -> list[dict[str, Any]]:
    """Everybody on the roll, for status displays, ascending by name.

    Keys: peer, class (founder, invited, aged or stranger), inviter, since, merged.
    """
    return [
        {
            "peer": peer_name(peer),
            "class": peer_class(roll, peer),
            "inviter": peer_name(standing.inviter) if standing.inviter not in (b"", peer) else "",
            "since": standing.since,
            "merged": standing.merged,
        }
        for peer, standing in sorted(roll.listed.items())
    ]


def peer_class(roll: Roll, peer: bytes) -> str:
    """What ``peer`` counts as."""
    if peer in roll.founders:
        return "founder"
    standing = roll.listed.get(peer)
    if standing is not None and standing.inviter:
        return "invited"
    return "aged" if roll.is_full(peer) else "stranger"
