"""Invites, acts and rolls for tests."""

from __future__ import annotations

from typing import Any

from sterna_protocol.swarm.charter import Charter
from sterna_protocol.swarm.invitation import invite_with
from sterna_protocol.wire.acts import Act, Departure, Revocation, Rotation, sign_act
from sterna_protocol.wire.ids import sha256
from sterna_protocol.wire.messages import Decision, SlateEntry
from sterna_protocol.wire.signing import SigningKey


def admission(charter: Charter, inviter: SigningKey, joiner: SigningKey, **changes: Any) -> Act:
    """The act that lets ``joiner`` in by an invite of ``inviter``; ``changes`` are to its terms."""
    terms: dict[str, Any] = {
        "seed": sha256(b"test/invite", inviter.peer, joiner.peer),
        "uses": 1,
        "last_round": 100,
        "may_invite": 0,
    } | changes
    invitation = invite_with(inviter, terms.pop("seed"), swarm=charter.swarm_id, **terms)
    return invitation.admit(joiner, charter.swarm_id)


def revocation(charter: Charter, revoker: SigningKey, peer: SigningKey) -> Act:
    return sign_act(Revocation(revoker=revoker.peer, peer=peer.peer), revoker, swarm=charter.swarm_id)


def departure(charter: Charter, peer: SigningKey, since: int = 0) -> Act:
    return sign_act(Departure(peer=peer.peer, since=since), peer, swarm=charter.swarm_id)


def rotation(charter: Charter, old: SigningKey, new: SigningKey) -> Act:
    return sign_act(Rotation(old=old.peer, new=new.peer), old, new, swarm=charter.swarm_id)


def decided(charter: Charter, round_: int, *authors: SigningKey, changes: tuple[Act, ...] = ()) -> Decision:
    """A decision with a delta of each of ``authors``."""
    entries = tuple(
        SlateEntry(
            author=author, announcement=sha256(b"a", author), delta=sha256(b"d", author), trained_round=round_
        )
        for author in sorted(author.peer for author in authors)
    )
    return Decision(
        round_=round_,
        previous=bytes(32),
        entries=entries,
        attesters=(),
        adapter=bytes(32),
        changes=changes,
    )
