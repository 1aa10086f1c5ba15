"""Invariants: what must hold after every event, judged from outside with what every honest peer really said.

Nothing here asks the code under test whether it is right: committees and quorums are computed once more, from
the specification (docs/spec/round.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sterna.simulate.door import Door
from sterna.simulate.learning import Learning
from sterna_protocol.round.early import MAX_EARLY
from sterna_protocol.swarm.charter import Charter
from sterna_protocol.wire.limits import MAX_COMMITTEE, MAX_MESSAGES_PER_ROUND
from sterna_protocol.wire.messages import (
    Announcement,
    Attestation,
    Certificate,
    Decision,
    Evidence,
    Kind,
    Precommit,
    Signed,
    SlateEntry,
    decode_body,
)

MAX_VIOLATIONS = 20
"""Enough to see what is wrong; what follows from a broken state says little."""

MIN_COMMITTEE = 4

MAX_FRAMES = MAX_MESSAGES_PER_ROUND + MAX_EARLY
"""What a peer may have in memory of the open round and of the next."""

EXCLUDED_WITHIN_ROUNDS = 2
"""Decisions after which a proof is known to all on a healed network, and one of them has named it."""

Place = tuple[bytes, int, int, int]
"""Author, round, attempt, kind."""


def _name(message: Signed) -> str:
    kind = Kind(message.kind).name
    return f"{message.author.hex()[:8]} {kind} of {message.round_}.{message.attempt}"


@dataclass(slots=True)
class Invariants:
    """Told of everything; ``violations`` says what must never have happened, the first first.

    ``beyond_tolerance`` is the first round whose committee has as many Byzantine members as it takes to stop
    or fork it: the protocol promises nothing from there on. ``proven``: whom evidence names, the honest peers
    that hold some, and how many rounds were decided when they first did.
    """

    charter: Charter
    genesis_adapter: bytes
    learning: Learning
    is_honest: Callable[[bytes], bool]
    violations: list[str] = field(default_factory=list)
    decided: list[Decision] = field(default_factory=list)
    forks: int = 0
    proven: dict[bytes, dict[int, int]] = field(default_factory=dict)
    beyond_tolerance: int | None = None
    _said: dict[Place, bytes] = field(default_factory=dict)
    _precommits: dict[Place, bytes] = field(default_factory=dict)
    _announced: dict[bytes, bytes] = field(default_factory=dict)
    _attested: dict[tuple[int, bytes], tuple[bytes, ...]] = field(default_factory=dict)
    _members: list[tuple[bytes, ...]] = field(default_factory=list)
    _checked: dict[bytes, None] = field(default_factory=dict)
    _door: Door = field(init=False)

    def __post_init__(self) -> None:
        self._door = Door(self.charter)
        self._open_round(self.charter.founders)

    def broken(self, what: str) -> None:
        if len(self.violations) < MAX_VIOLATIONS:
            self.violations.append(what)

    def merged(self, round_: int, previous: bytes, entries: Sequence[SlateEntry]) -> bytes:
        """What a slate of the first undecided round makes of an adapter."""
        return self.learning.merged(round_, previous, entries, self._door.branches(entries))

    # What honest peers say

    def said(self, message: Signed, frame: bytes, stored: bytes | None) -> None:
        """An honest peer sends a message of its own; ``stored``: what its disk holds for the place."""
        if stored != frame:
            self.broken(f"sent before it was stored: {_name(message)}")
        self.signed(message, frame)

    def signed(self, message: Signed, frame: bytes) -> None:
        """An honest peer stores a message of its own: from now on others may pull it, sent or not."""
        place = (message.author, message.round_, message.attempt, message.kind)
        known = self._said.setdefault(place, frame)
        if known != frame:
            self.broken(f"two messages for one place: {_name(message)}")
            return
        body = decode_body(message)
        if isinstance(body, Precommit):
            self._precommits[place] = body.choice
        elif isinstance(body, Attestation):
            self._attested[message.round_, message.author] = body.accepted
        elif isinstance(body, Announcement):
            self._announced[message.id] = message.author

    # What honest peers believe

    def certified(self, number: int, certificate: Certificate, held: int) -> None:
        """An honest peer with ``held`` certificates stores one more."""
        round_ = certificate.round_
        if round_ != held + 1:
            self.broken(f"peer {number} closes round {round_} after round {held}")
            return
        if round_ <= len(self.decided) and self.decided[round_ - 1].id != certificate.id:
            self.forks += 1
            self.broken(f"two decisions for round {round_}")
        frame = certificate.frame()
        if frame in self._checked:
            return
        self._checked[frame] = None
        if round_ == len(self.decided) + 1:
            self._check_decision(certificate.decision)
            self.decided.append(certificate.decision)
            self._open_round(self._committee_after(certificate.decision))
        self._check_signatures(certificate)

    def accused(self, number: int, author: bytes, evidence: Evidence) -> None:
        """An honest peer holds a proof that it verified."""
        if self.is_honest(author):
            place = f"{Kind(evidence.kind).name} of {evidence.round_}.{evidence.attempt}"
            self.broken(f"peer {number} holds proof against the honest {author.hex()[:8]}, {place}")
        self.proven.setdefault(author, {}).setdefault(number, len(self.decided))

    def blamed(self, number: int, other: int, reason: str) -> None:
        """An honest peer says that another honest peer broke the protocol."""
        self.broken(f"peer {number} blames the honest peer {other}: {reason}")

    def stands(self, number: int, round_: int, head: Certificate | None, disk: int) -> None:
        """After an event: an honest peer's open round, the certificate before, and how many it stored."""
        if round_ != disk + 1:
            self.broken(f"peer {number} is in round {round_} with {disk} certificates on disk")
        elif head is not None and head.id != self.decided[round_ - 2].id:
            self.broken(f"round {round_ - 1} changed at peer {number} after it was closed")

    def holds(self, number: int, frames: int) -> None:
        """After an event: an honest peer has so many frames of the open round and the next in memory."""
        if frames > MAX_FRAMES:
            self.broken(f"peer {number} holds {frames} frames, the limit is {MAX_FRAMES}")

    def ends(self) -> None:
        """After two rounds on a healed network: whom two honest peers had proven two-faced kept no seat."""
        for author, witnesses in self.proven.items():
            seen = sorted(witnesses.values())
            if len(seen) < 2 or seen[1] > len(self.decided) - EXCLUDED_WITHIN_ROUNDS:
                continue
            if all(author in members for members in self._members[-1 - EXCLUDED_WITHIN_ROUNDS :]):
                self.broken(
                    f"{author.hex()[:8]} has a seat after round {len(self.decided)}, though two honest peers "
                    f"proved it two-faced after round {seen[1]}"
                )

    # Rules of a certificate

    def quorum(self, members: int) -> int:
        return members // 2 + 1 if self.charter.quorum == "majority" else 2 * members // 3 + 1

    @property
    def may_be_stopped(self) -> bool:
        """Whether the honest members of the first undecided round are no quorum."""
        members = self._members[-1]
        return sum(map(self.is_honest, members)) < self.quorum(len(members))

    def _open_round(self, members: tuple[bytes, ...]) -> None:
        self._members.append(members)
        if self.beyond_tolerance is None and self.may_be_stopped:
            self.beyond_tolerance = len(self._members)

    def _committee_after(self, decision: Decision) -> tuple[bytes, ...]:
        took_part = {entry.author: None for entry in decision.entries} | dict.fromkeys(decision.attesters)
        members = {member: None for member in took_part if self._door.may_sit(member)}
        if len(set(members) - set(decision.excluded)) < MIN_COMMITTEE:
            members |= dict.fromkeys(self.charter.founders)
        members = dict.fromkeys(sorted(set(members) - set(decision.excluded)) or self.charter.founders)
        start = b"sterna/sortition/1\0" + decision.id
        drawn = sorted(members, key=lambda member: hashlib.sha256(start + member).digest())
        return tuple(sorted(drawn[:MAX_COMMITTEE]))

    def _check_decision(self, decision: Decision) -> None:
        round_, limits = decision.round_, self.charter.limits
        before = self.decided[-1] if self.decided else None
        if decision.previous != (before.id if before else self.charter.swarm_id):
            self.broken(f"the decision of round {round_} does not continue the chain")
        adapter = before.adapter if before else self.genesis_adapter
        if decision.adapter != self.merged(round_, adapter, decision.entries):
            self.broken(f"round {round_} certifies an adapter that its slate does not give")
        if decision.entries and not limits.min_deltas <= len(decision.entries) <= limits.max_deltas:
            self.broken(f"round {round_} certifies a slate of {len(decision.entries)} deltas")
        members = self._members[round_ - 1]
        needed = self.quorum(len(members))
        liars = sum(not self.is_honest(member) for member in members)
        for breach in self._door.follow(decision):
            self.broken(breach)
        for entry in decision.entries:
            attested = sum(
                entry.announcement in self._attested.get((round_, member), ()) for member in members
            )
            if attested + liars < needed:
                self.broken(f"round {round_} merges a delta with {attested} attestations of honest members")
            if not round_ - limits.max_staleness <= entry.trained_round <= round_:
                self.broken(f"round {round_} merges a delta of round {entry.trained_round}")
            if self.is_honest(entry.author) and self._announced.get(entry.announcement) != entry.author:
                self.broken(
                    f"round {round_} merges a delta that its author {entry.author.hex()[:8]} never sent"
                )
        for author in decision.excluded:
            if self.is_honest(author):
                self.broken(f"round {round_} excludes the honest {author.hex()[:8]}")
        if before is not None and not set(before.excluded) <= set(decision.excluded):
            self.broken(f"round {round_} takes back an exclusion")
        for attester in decision.attesters:
            if self.is_honest(attester) and (round_, attester) not in self._attested:
                self.broken(f"round {round_} names {attester.hex()[:8]}, who attested nothing")
        if len(set(decision.attesters) & set(members)) < needed:
            self.broken(f"round {round_} names {len(decision.attesters)} attesters, a quorum is {needed}")

    def _check_signatures(self, certificate: Certificate) -> None:
        round_ = certificate.round_
        members = self._members[round_ - 1]
        signers = dict.fromkeys(entry.member for entry in certificate.signatures if entry.member in members)
        needed = self.quorum(len(members))
        if len(signers) < needed:
            self.broken(f"round {round_} is certified by {len(signers)} members, a quorum is {needed}")
        for member in signers:
            place = (member, round_, certificate.attempt, int(Kind.PRECOMMIT))
            if self.is_honest(member) and self._precommits.get(place) != certificate.id:
                self.broken(f"round {round_} is certified with a vote that {member.hex()[:8]} never sent")
