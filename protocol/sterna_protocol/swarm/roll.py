"""The roll: who is in a swarm, who invited whom, and what each may do, after each round.

A fold over the certified decisions and nothing else, so that every node that holds the chain holds the same
roll. A *branch* is a direct invitee of a founder with everybody below it; each founder is one, and so is each
stranger of an open swarm that has aged. The strangers that have not are one branch together, ``OPEN``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from sterna_protocol.errors import Untimely
from sterna_protocol.swarm.charter import Charter
from sterna_protocol.wire import signing
from sterna_protocol.wire.acts import Act, Admission, Departure, Revocation, Rotation
from sterna_protocol.wire.messages import Decision, SlateEntry

OPEN = b""
"""Branch of all strangers that have not aged."""

Branches = Sequence[tuple[bytes, bytes]]
"""(author, its branch) of the authors of a slate that are not a branch of their own, ascending."""

FORGOTTEN_AFTER = 256
"""Rounds without a merged delta after which a stranger is forgotten, its age with it: with 64 new keys in
every slate, a roll holds 16,384 of them at most."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What the roll says of one peer.

    Args:
        inviter: the peer that invited it; itself for a founder; empty for a stranger of an open swarm.
        branch: what it counts under.
        depth: invites between it and a founder; 0 for founders and strangers.
        may_invite: peers that it may invite in all; ``invited``: those it did.
        since: the round that admitted it.
        merged: rounds that merged a delta of it; ``last``: the newest of them, or ``since``.
    """

    inviter: bytes
    branch: bytes
    depth: int
    may_invite: int
    invited: int
    since: int
    merged: int
    last: int


@dataclass(frozen=True, slots=True)
class Roll:
    """Everybody's standing, after a round or before the first.

    Args:
        founders: who founded the swarm and is still in it, under the keys they have now, ascending.
        listed: the peers in the swarm.
        gone: keys that were revoked or rotated away; they never come back.
        used: invites' keys and how many peers each has let in.
        renamed: keys that were rotated away and what took their place.
    """

    charter: Charter
    founders: tuple[bytes, ...]
    listed: Mapping[bytes, Standing]
    gone: frozenset[bytes]
    used: Mapping[bytes, int]
    renamed: Mapping[bytes, bytes]

    @classmethod
    def founding(cls, charter: Charter) -> Self:
        """The roll before round 1: the founders."""
        quota = charter.admission.quota
        listed = {
            founder: Standing(
                inviter=founder,
                branch=founder,
                depth=0,
                may_invite=quota,
                invited=0,
                since=0,
                merged=0,
                last=0,
            )
            for founder in charter.founders
        }
        return cls(charter, charter.founders, listed, frozenset(), {}, {})

    # What it says

    @property
    def is_open(self) -> bool:
        return self.charter.admission.mode == "open"

    def may_announce(self, peer: bytes) -> bool:
        """Whether deltas of ``peer`` may be merged."""
        return peer in self.listed or (self.is_open and peer not in self.gone)

    def is_full(self, peer: bytes) -> bool:
        """Whether ``peer`` counts as a whole and may sit in the committee."""
        standing = self.listed.get(peer)
        if standing is None:
            return self.is_open and self.charter.admission.aged_rounds == 0 and peer not in self.gone
        return bool(standing.inviter) or standing.merged >= self.charter.admission.aged_rounds

    def branch(self, peer: bytes) -> bytes:
        """What ``peer`` counts under: the peers of one branch count as one."""
        if not self.is_full(peer):
            return OPEN
        standing = self.listed.get(peer)
        return peer if standing is None else standing.branch

    def branches(self, entries: Iterable[SlateEntry]) -> Branches:
        """What the authors of a slate count under in its merge, by the roll after its decision's changes."""
        found = ((entry.author, self.branch(entry.author)) for entry in entries)
        return tuple((author, branch) for author, branch in found if branch != author)

    def current(self, peer: bytes) -> bytes:
        """The key that the owner of ``peer`` has now."""
        while peer in self.renamed:
            peer = self.renamed[peer]
        return peer

    def above(self, peer: bytes) -> list[bytes]:
        """Who invited ``peer``, who invited that one, and so on: the nearest first."""
        found: list[bytes] = []
        standing = self.listed.get(peer)
        while standing is not None and standing.inviter and standing.depth > 0:
            found.append(standing.inviter)
            standing = self.listed.get(standing.inviter)
        return found

    def below(self, peer: bytes) -> list[bytes]:
        """Everybody in the sub-tree of ``peer``, ``peer`` first."""
        found = [peer]
        for inviter in found:
            found += [
                other
                for other, standing in self.listed.items()
                if standing.inviter == inviter and other != inviter
            ]
        return found

    def left_uses(self, admission: Admission) -> int:
        """How many peers the invite of ``admission`` may still let in."""
        invite = admission.invite
        inviter = self.listed.get(invite.inviter)
        if inviter is None:
            return 0
        return min(invite.uses - self.used.get(invite.key, 0), inviter.may_invite - inviter.invited)

    def has_done(self, act: Act) -> bool:
        """Whether what ``act`` is for is so already, by it or otherwise."""
        match act.content:
            case Admission(joiner=joiner):
                standing = self.listed.get(joiner)
                return standing is not None and bool(standing.inviter)
            case Revocation(peer=peer) | Departure(peer=peer) | Rotation(old=peer):
                return peer not in self.listed

    # How it changes

    def check(self, act: Act, round_: int, excluded: Collection[bytes] = ()) -> None:
        """Return if the chain allows ``act`` in ``round_``, whoever signed it.

        Raises:
            Untimely: it does not, now; the message says why.
            MalformedMessage: it is not an act.
        """
        match act.content:
            case Admission() as admission:
                self._check_admission(admission, round_, excluded)
            case Revocation(revoker=revoker, peer=peer):
                # [IGNORE] A founder, or one above it, revokes a peer that is no founder
                if peer not in self.listed or peer in self.founders:
                    raise Untimely(f"{peer.hex()[:8]} is nobody who can be revoked")
                if revoker not in self.founders and revoker not in self.above(peer):
                    raise Untimely(f"{revoker.hex()[:8]} is not above {peer.hex()[:8]}")
            case Departure(peer=peer, since=since):
                # [IGNORE] It leaves what it joined
                standing = self.listed.get(peer)
                if standing is None or standing.since != since:
                    raise Untimely(f"{peer.hex()[:8]} is not in the swarm since round {since}")
            case Rotation(old=old, new=new):
                # [IGNORE] The old key is in good standing, the new one was never seen
                if old not in self.listed or old in excluded:
                    raise Untimely(f"{old.hex()[:8]} is no key that can be rotated")
                if new in self.listed or new in self.gone or new in excluded:
                    raise Untimely(f"{new.hex()[:8]} is no new key")

    def _check_admission(self, admission: Admission, round_: int, excluded: Collection[bytes]) -> None:
        invite, joiner = admission.invite, admission.joiner
        # [IGNORE] The joiner is neither in the swarm nor barred from it
        if joiner in self.gone or joiner in excluded:
            raise Untimely(f"{joiner.hex()[:8]} is barred")
        standing = self.listed.get(joiner)
        if standing is not None and standing.inviter:
            raise Untimely(f"{joiner.hex()[:8]} is in the swarm")
        # [IGNORE] The inviter is in the swarm, as a full peer
        inviter = self.listed.get(invite.inviter)
        if inviter is None or not inviter.inviter or invite.inviter in excluded:
            raise Untimely(f"the inviter {invite.inviter.hex()[:8]} is not in the swarm")
        # [IGNORE] The invite has not expired
        if round_ > invite.last_round:
            raise Untimely(f"the invite was good up to round {invite.last_round}")
        # [IGNORE] The chain of invites is short enough, and allows no more than a founder may
        limits = self.charter.admission
        if inviter.depth >= limits.max_depth or invite.may_invite > limits.quota:
            raise Untimely("the invite goes further than the charter allows")
        # [IGNORE] The invite and the inviter have uses left
        if self.left_uses(admission) <= 0:
            raise Untimely("the invite is used up")

    def changed(
        self,
        acts: Iterable[Act],
        round_: int,
        excluded: Collection[bytes] = (),
        verify: signing.Verify | None = None,
    ) -> Roll:
        """The roll after ``acts``, one after the other. ``verify``: None where they were verified before.

        Raises:
            Untimely: one of them is not allowed.
            MalformedMessage, BadSignature: one of them is not an act, or not signed.
        """
        roll = self
        for act in acts:
            roll.check(act, round_, excluded)
            if verify is not None:
                act.verify(self.charter.swarm_id, verify)
            roll = roll._with(act, round_)
        return roll

    def _with(self, act: Act, round_: int) -> Roll:
        match act.content:
            case Admission(invite=invite, joiner=joiner):
                inviter = self.listed[invite.inviter]
                standing = Standing(
                    inviter=invite.inviter,
                    branch=joiner if inviter.depth == 0 else inviter.branch,
                    depth=inviter.depth + 1,
                    may_invite=invite.may_invite,
                    invited=0,
                    since=round_,
                    merged=0,
                    last=round_,
                )
                asked = replace(inviter, invited=inviter.invited + 1)
                return replace(
                    self,
                    listed={**self.listed, invite.inviter: asked, joiner: standing},
                    used={**self.used, invite.key: self.used.get(invite.key, 0) + 1},
                )
            case Revocation(peer=peer):
                cut = frozenset(self.below(peer))
                return replace(
                    self,
                    listed={peer: standing for peer, standing in self.listed.items() if peer not in cut},
                    gone=self.gone | cut,
                )
            case Departure(peer=peer):
                return replace(
                    self,
                    founders=tuple(founder for founder in self.founders if founder != peer),
                    listed={other: standing for other, standing in self.listed.items() if other != peer},
                )
            case Rotation(old=old, new=new):
                return self._renamed(old, new)

    def _renamed(self, old: bytes, new: bytes) -> Roll:
        def name(peer: bytes) -> bytes:
            return new if peer == old else peer

        return replace(
            self,
            founders=tuple(sorted(name(founder) for founder in self.founders)),
            listed={
                name(peer): replace(standing, inviter=name(standing.inviter), branch=name(standing.branch))
                for peer, standing in self.listed.items()
            },
            gone=self.gone | {old},
            renamed={**self.renamed, old: new},
        )

    def after(self, decision: Decision) -> Roll:
        """The roll that the next round opens with, from a decision that was checked."""
        round_ = decision.round_
        roll = self.changed(decision.changes, round_)
        if not decision.entries:
            return roll
        listed = dict(roll.listed)
        for entry in decision.entries:
            author = roll.current(entry.author)
            standing = listed.get(author)
            if standing is None:
                standing = Standing(
                    inviter=b"",
                    branch=author,
                    depth=0,
                    may_invite=0,
                    invited=0,
                    since=round_,
                    merged=0,
                    last=round_,
                )
            listed[author] = replace(standing, merged=standing.merged + 1, last=round_)
        if roll.is_open:
            listed = {
                peer: standing
                for peer, standing in listed.items()
                if standing.inviter or round_ - standing.last < FORGOTTEN_AFTER
            }
        return replace(roll, listed=listed)
