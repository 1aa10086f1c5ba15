"""What one node signed in a round: one message for each place, sent again while nothing happens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sterna_protocol.round.effects import Effect, StoreOwn
from sterna_protocol.round.evidence import Held, Place, hold, place_of
from sterna_protocol.round.phases import vote_seconds
from sterna_protocol.round.setting import Setting
from sterna_protocol.wire.messages import Body, Kind, sign
from sterna_protocol.wire.signing import SigningKey

MAX_RESEND_FACTOR = 8
"""A node that sees no progress repeats its messages after 1, 2, 4, 8, 8, ... vote times."""


class OwnMessages:
    """This node's messages of one round, the oldest first.

    Args:
        kept: those that an earlier start of the node had stored.
    """

    def __init__(self, setting: Setting, key: SigningKey, *, now: float, kept: Mapping[Place, Held]) -> None:
        self.repeat_at = now
        self._setting = setting
        self._key = key
        self._held = dict(kept)
        self._announcement = self.place(Kind.ANNOUNCEMENT, 0)
        self._vote_seconds = vote_seconds(setting.charter, 0)
        self._repeat_after = self._vote_seconds
        self._last_progress: object = None

    def __contains__(self, place: Place) -> bool:
        return place in self._held

    def __iter__(self) -> Iterator[Held]:
        return iter(self._held.values())

    def __reversed__(self) -> Iterator[Held]:
        return reversed(self._held.values())

    def __len__(self) -> int:
        return len(self._held)

    @property
    def announcement(self) -> Held | None:
        return self._held.get(self._announcement)

    def place(self, kind: Kind, attempt: int) -> Place:
        return Place(self._setting.round_, attempt, kind, self._key.peer)

    def sign(self, attempt: int, body: Body) -> tuple[Held, list[Effect]]:
        """The message and what stores it; if one was signed for its place before, that one and nothing."""
        setting = self._setting
        message = sign(self._key, swarm=setting.swarm, round_=setting.round_, attempt=attempt, body=body)
        kept = self._held.get(place_of(message))
        if kept is not None:
            return kept, []
        held = hold(message)
        self._held[held.place] = held
        return held, [StoreOwn(setting.round_, attempt, message.kind, held.frame)]

    def must_repeat(self, now: float, progress: object) -> bool:
        """Whether ``progress`` has been the same for so long that the others may have missed something."""
        if progress != self._last_progress:
            self._last_progress = progress
            self._repeat_after = self._vote_seconds
            self.repeat_at = now + self._repeat_after
            return False
        if now < self.repeat_at:
            return False
        self._repeat_after = min(2 * self._repeat_after, MAX_RESEND_FACTOR * self._vote_seconds)
        self.repeat_at = now + self._repeat_after
        return True
