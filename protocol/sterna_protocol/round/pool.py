"""The pool: the messages of the open round, one per place, and what they add up to."""

from __future__ import annotations

from collections.abc import Collection

from sterna_protocol.round.evidence import Held, Place, make_evidence, proof_id
from sterna_protocol.wire.acts import Act
from sterna_protocol.wire.ids import sha256
from sterna_protocol.wire.limits import MAX_ANNOUNCEMENTS, MAX_COMMITTEE, MAX_EXCLUDED
from sterna_protocol.wire.messages import Announcement, Attestation, Commitment, Evidence, Kind

MAX_STRANGERS = MAX_ANNOUNCEMENTS - MAX_COMMITTEE
"""Authors outside the committee: those who fill the pool leave room for the members."""

KEPT_ATTEMPTS = 40
"""Attempts, up to an author's newest, whose votes are kept: 32 members with 40 attempts fill 2,600 of the
4,096 places. With four members and a vote time of 10 s, attempt 40 comes after two hours of disagreement."""

AUTHORS_KINDS = (Kind.COMMITMENT, Kind.ANNOUNCEMENT)
"""What anybody may send; the rest is the members'."""

ATTEMPT_KINDS = (Kind.PROPOSAL, Kind.PREVOTE, Kind.PRECOMMIT)


class Pool:
    """Holds messages that were checked and verified; the first of a place counts, a second makes evidence.

    Memory: per author one commitment and one announcement, of at most 224 strangers; per member one
    attestation and 40 attempts; a proof of 340 bytes for a place that is two-faced; the announcements that a
    quorum attested, fewer than 512 as long as less than a third of the members lie.
    """

    def __init__(self, members: tuple[bytes, ...]) -> None:
        self.announcements: dict[bytes, Held] = {}
        self._members = frozenset(members)
        self._places: dict[Place, Held] = {}
        self._conflicts: dict[Place, Evidence] = {}
        self._proofs: dict[bytes, Evidence] = {}
        self._remembered: dict[bytes, Evidence] = {}
        self._frames: dict[bytes, bytes] = {}
        self._known: set[bytes] = set()
        self._set: set[bytes] = set()
        self._supporters: dict[bytes, set[bytes]] = {}
        self._attested: dict[int, tuple[bytes, ...]] = {}
        self._attesters: set[bytes] = set()
        self._two_faced: set[bytes] = set()
        self._newest: dict[bytes, int] = {}
        self._strangers: set[bytes] = set()
        self._ids: tuple[bytes, ...] | None = None
        self._digest: bytes | None = None
        self._commitments: dict[bytes, bytes] | None = None
        self._authors: frozenset[bytes] | None = None

    # Places

    def is_member(self, author: bytes) -> bool:
        """Whether ``author`` is in the committee."""
        return author in self._members

    def at(self, place: Place) -> Held | None:
        """The message that counts for a place."""
        return self._places.get(place)

    def is_conflicted(self, place: Place) -> bool:
        """Whether the place is proven two-faced."""
        return place in self._conflicts

    def has_room(self, place: Place, pinned: set[int]) -> bool:
        """Whether something for this place would be kept. ``pinned``: attempts kept however old."""
        if place.kind in AUTHORS_KINDS and place.author not in self._members:
            return place.author in self._strangers or len(self._strangers) < MAX_STRANGERS
        if place.kind in ATTEMPT_KINDS:
            oldest = self._newest.get(place.author, 0) - KEPT_ATTEMPTS
            return place.attempt > oldest or place.attempt in pinned
        return True

    def add(self, held: Held, pinned: set[int]) -> tuple[Evidence | None, list[Place]]:
        """Keep ``held``; returns the evidence if its place was taken, and the places dropped to make room."""
        place = held.place
        if isinstance(held.body, Announcement):
            self.announcements.setdefault(held.id, held)
            self._keep(held.id, held.frame)
            self._changed(place.kind)
        first = self._places.get(place)
        if first is not None:
            if place in self._conflicts:
                return None, []
            evidence = make_evidence(first, held)
            return evidence, self.add_conflict(place, evidence, pinned)
        self._places[place] = held
        self._keep(held.id, held.frame)
        if place not in self._conflicts:
            self._set.add(held.id)
        if isinstance(held.body, Attestation):
            self._attesters.add(place.author)
            self._attested.clear()
            for announcement in held.body.accepted:
                self._supporters.setdefault(announcement, set()).add(place.author)
        return None, self._make_room(place, pinned)

    def add_conflict(self, place: Place, evidence: Evidence, pinned: set[int]) -> list[Place]:
        """Mark a place as two-faced; returns the places dropped to make room."""
        held = self._places.get(place)
        if held is not None:
            self._set.discard(held.id)
        self._conflicts[place] = evidence
        self._set.add(place.conflict_id)
        self._keep(place.conflict_id, evidence.frame())
        if place.kind == Kind.ATTESTATION:
            self._two_faced.add(place.author)
            self._attested.clear()
        return self._make_room(place, pinned)

    def add_proof(self, evidence: Evidence) -> None:
        """Keep evidence against a member that is not about a place held: of an earlier round or attempt."""
        self._changed(evidence.kind)
        self._proofs[evidence.author] = evidence
        self._set.add(proof_id(evidence.author))
        self._keep(proof_id(evidence.author), evidence.frame())

    def add_act(self, act: Act) -> None:
        """Keep an act that a decision may carry out."""
        self._digest = None
        self._set.add(act.id)
        self._keep(act.id, act.frame())

    def drop_act(self, act: Act) -> None:
        """Another act takes its place."""
        self._digest = None
        self._set.discard(act.id)
        self._known.discard(self._frames.pop(act.id, b""))

    def proof_of(self, author: bytes) -> Evidence | None:
        """Evidence against ``author`` of an earlier round or attempt."""
        return self._proofs.get(author)

    def proofs(self) -> dict[bytes, Evidence]:
        """One evidence, of this round or an earlier one, against each member proven two-faced."""
        found = {evidence.author: evidence for evidence in self._conflicts.values()} | self._proofs
        return {author: evidence for author, evidence in found.items() if author in self._members}

    def remember(self, evidence: Evidence) -> None:
        """Keep evidence against one who had a seat and has none: it must not come back to one."""
        if len(self._remembered) < MAX_EXCLUDED:
            self._remembered.setdefault(evidence.author, evidence)

    def remembered(self) -> dict[bytes, Evidence]:
        """One evidence against each author that ``remember`` was told of."""
        return dict(self._remembered)

    def _keep(self, name: bytes, frame: bytes) -> None:
        self._frames[name] = frame
        self._known.add(frame)

    def _changed(self, kind: int) -> None:
        """What is added up is added up again when it is asked for, if a message of this kind counts in it."""
        self._ids = self._digest = None
        if kind == Kind.COMMITMENT:
            self._commitments = None
        elif kind == Kind.ANNOUNCEMENT:
            self._authors = None

    def _make_room(self, place: Place, pinned: set[int]) -> list[Place]:
        self._changed(place.kind)
        # Who is let in beyond, with what a quorum attested, has room for no more than that.
        if place.author not in self._members and len(self._strangers) < MAX_STRANGERS:
            self._strangers.add(place.author)
        if place.kind not in ATTEMPT_KINDS or place.attempt <= self._newest.get(place.author, 0):
            return []
        self._newest[place.author] = place.attempt
        oldest = place.attempt - KEPT_ATTEMPTS
        dropped = [
            old
            for old in {**self._places, **self._conflicts}
            if old.author == place.author
            and old.kind in ATTEMPT_KINDS
            and old.attempt <= oldest
            and old.attempt not in pinned
        ]
        for old in dropped:
            held = self._places.pop(old, None)
            evidence = self._conflicts.pop(old, None)
            for name in (old.conflict_id, *((held.id,) if held is not None else ())):
                self._known.discard(self._frames.pop(name, b""))
                self._set.discard(name)
            if evidence is not None and old.author not in self._proofs:
                # Nobody outruns a proof by voting in attempts far ahead.
                self.add_proof(evidence)
        return dropped

    # The set, for anti-entropy

    def __len__(self) -> int:
        return len(self._set)

    def ids(self) -> tuple[bytes, ...]:
        """Ids of the messages and conflicts held, ascending."""
        if self._ids is None:
            self._ids = tuple(sorted(self._set))
        return self._ids

    def digest(self) -> bytes:
        """Equal in two nodes exactly if their ``ids`` are."""
        if self._digest is None:
            self._digest = sha256(b"sterna/set/1", *self.ids())
        return self._digest

    def frames_held(self) -> int:
        """Messages, second announcements and evidence in memory."""
        return len(self._frames)

    def has_frame(self, frame: bytes) -> bool:
        """Whether exactly these bytes are held."""
        return frame in self._known

    def has(self, name: bytes) -> bool:
        return name in self._frames

    def frame(self, name: bytes) -> bytes | None:
        """The frame behind an id: of a message, of a conflict's evidence, of a second announcement."""
        return self._frames.get(name)

    # What commitments and attestations say

    def commitments(self) -> dict[bytes, bytes]:
        """The announcement that each author committed to, without two-faced authors."""
        if self._commitments is None:
            self._commitments = {
                place.author: held.body.announcement
                for place, held in self._places.items()
                if place.kind == Kind.COMMITMENT
                and isinstance(held.body, Commitment)
                and place not in self._conflicts
            }
        return self._commitments

    def authors(self) -> frozenset[bytes]:
        """Who announced a delta."""
        if self._authors is None:
            self._authors = frozenset(held.place.author for held in self.announcements.values())
        return self._authors

    def attesters(self) -> frozenset[bytes]:
        """Members who attested, whatever it was."""
        return frozenset(self._attesters | self._two_faced)

    def honest_looking_attesters(self) -> frozenset[bytes]:
        """Members who attested one thing only, as far as seen."""
        return frozenset(self._attesters - self._two_faced)

    def supporters(self, announcement: bytes) -> frozenset[bytes]:
        """Members who attested it. A two-faced attester counts: others may have been shown that it did."""
        return frozenset(self._supporters.get(announcement, set()) | self._two_faced)

    def attested(self, quorum: int) -> tuple[bytes, ...]:
        """Announcements with a quorum of attestations, held or not; the best supported first, then by id."""
        if quorum not in self._attested:
            counts = {name: len(found | self._two_faced) for name, found in self._supporters.items()}
            self._attested[quorum] = tuple(
                sorted(
                    (name for name, count in counts.items() if count >= quorum),
                    key=lambda name: (-counts[name], name),
                )
            )
        return self._attested[quorum]

    def is_by(self, name: bytes, authors: Collection[bytes]) -> bool:
        """Whether an announcement is known to be by one of ``authors``."""
        held = self.announcements.get(name)
        return held is not None and held.message.author in authors

    def surely_attested(self, quorum: int) -> list[bytes]:
        """Announcements that have a quorum even without two-faced attesters."""
        return [name for name, found in self._supporters.items() if len(found - self._two_faced) >= quorum]
