"""Messages of the next round, which some send before this node has closed the open one."""

from __future__ import annotations

from sterna_protocol.round.evidence import Held, Place

MAX_EARLY = 512
"""Messages of the next round kept until this one closes; whatever is dropped is pulled by heads."""

MAX_EARLY_PER_AUTHOR = 5
"""Commitment, announcement, attestation and two votes: what a member sends up to its first attempt."""


class Early:
    """At most one frame for each place, their signatures checked."""

    def __init__(self) -> None:
        self._frames: dict[Place, bytes] = {}

    def has_room(self, place: Place) -> bool:
        """Whether a message for this place would be new and find room."""
        by_author = sum(known.author == place.author for known in self._frames)
        return (
            place not in self._frames and by_author < MAX_EARLY_PER_AUTHOR and len(self._frames) < MAX_EARLY
        )

    def __len__(self) -> int:
        return len(self._frames)

    def keep(self, held: Held) -> None:
        self._frames[held.place] = held.frame

    def take(self) -> list[bytes]:
        """The frames kept, oldest first; none are kept afterwards."""
        frames, self._frames = self._frames, {}
        return list(frames.values())
