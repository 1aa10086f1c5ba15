"""Status: where a node stands, for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from sterna_protocol.round.consensus import Step
from sterna_protocol.round.deliberation import Blob
from sterna_protocol.round.open_round import OpenRound
from sterna_protocol.round.phases import Phase
from sterna_protocol.wire.messages import Announcement, Figures


@dataclass(frozen=True, slots=True)
class AuthorStatus:
    """One announcement of the open round. ``checked``: None while it is being fetched, or is not fetched."""

    author: bytes
    delta: bytes
    trained_round: int
    figures: Figures
    checked: bool | None


@dataclass(frozen=True, slots=True)
class Status:
    """A snapshot.

    ``authors`` are those who announced, and this node as soon as it committed. ``head`` is the id of the last
    decision, ``training`` the round being trained for.
    """

    round_: int
    phase: Phase
    attempt: int
    step: Step
    committee: tuple[bytes, ...]
    excluded: tuple[bytes, ...]
    is_member: bool
    head: bytes
    adapter: bytes
    adapter_ready: bool
    training: int | None
    committed: tuple[bytes, ...]
    authors: tuple[AuthorStatus, ...]
    attesters: tuple[bytes, ...]
    quorum: int
    messages: int

    @classmethod
    def of(cls, open_round: OpenRound, *, me: bytes, adapter_ready: bool, training: int | None) -> Self:
        setting, pool = open_round.setting, open_round.pool
        held_of = dict(pool.announcements)
        if open_round.own_announcement is not None:
            held_of.setdefault(open_round.own_announcement.id, open_round.own_announcement)
        checked = {Blob.GOOD: True, Blob.BAD: False}
        blobs = open_round.deliberation.blobs
        authors = [
            AuthorStatus(
                author=held.message.author,
                delta=held.body.delta,
                trained_round=held.body.trained_round,
                figures=held.body.figures,
                checked=checked.get(blobs.get(name, Blob.FETCHING)),
            )
            for name, held in held_of.items()
            if isinstance(held.body, Announcement)
        ]
        return cls(
            round_=setting.round_,
            phase=open_round.phase,
            attempt=max(0, open_round.attempt),
            step=open_round.step,
            committee=setting.members,
            excluded=setting.excluded,
            is_member=me in setting.members,
            head=setting.previous,
            adapter=setting.adapter,
            adapter_ready=adapter_ready,
            training=training,
            committed=tuple(sorted(pool.commitments())),
            authors=tuple(sorted(authors, key=lambda author: author.author)),
            attesters=tuple(sorted(pool.attesters())),
            quorum=setting.quorum,
            messages=len(pool),
        )
