"""Recovery: what a member must have on disk so that a restart never makes it sign a second message.

Every message this node signs is stored before it is sent. A precommit for a decision is preceded by a lock
record: the proposal and the quorum of prevotes behind it, without which a swarm that restarts as a whole
could neither go on with the locked decision nor leave it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from sterna_protocol.errors import LocalProtocolError, MalformedMessage
from sterna_protocol.round.consensus import Lock, Step
from sterna_protocol.round.evidence import Held, Place, hold
from sterna_protocol.wire.encoding import Record
from sterna_protocol.wire.ids import Attempt, Round
from sterna_protocol.wire.limits import MAX_COMMITTEE, MAX_FRAME_BYTES
from sterna_protocol.wire.messages import Kind, Precommit, Signed, decode_frame

LOCK = 0
"""Kind under which a lock record is stored; no frame on the wire has it."""


class LockRecord(Record):
    """Frames that justify the lock of one attempt: the proposal, then prevotes and evidence of prevotes."""

    max_bytes: ClassVar[int] = (MAX_COMMITTEE + 2) * (MAX_FRAME_BYTES + 8)

    round_: Round
    attempt: Attempt
    frames: Annotated[
        tuple[Annotated[bytes, Field(max_length=MAX_FRAME_BYTES)], ...],
        Field(max_length=MAX_COMMITTEE + 1),
    ]

    def frame(self) -> bytes:
        return bytes((LOCK,)) + self.encode()


@dataclass(frozen=True, slots=True)
class Recovered:
    """What the stored frames of the open round say. ``support`` are the frames inside the lock records."""

    own: dict[Place, Held]
    earlier: tuple[Held, ...]
    support: tuple[bytes, ...]
    locks: frozenset[int]


def recover(me: bytes, round_: int, frames: Iterable[bytes]) -> Recovered:
    """Sort the frames that ``StoreOwn`` effects had written, of the open round and of those before.

    Raises:
        LocalProtocolError: they are not what this node stores.
    """
    own: dict[Place, Held] = {}
    earlier: list[Held] = []
    support: list[bytes] = []
    locks: set[int] = set()
    for frame in frames:
        try:
            if frame[:1] == bytes((LOCK,)):
                record = LockRecord.decode(frame[1:])
                if record.round_ == round_:
                    support.extend(record.frames)
                    locks.add(record.attempt)
                continue
            message = decode_frame(frame)
            if not isinstance(message, Signed):
                raise MalformedMessage("not a signed message")
            held = hold(message, frame)
        except MalformedMessage as error:
            raise LocalProtocolError(f"a stored frame of this node cannot be read: {error}") from error
        if message.author != me:
            raise LocalProtocolError(
                f"a stored frame is signed by {message.author.hex()[:8]}, not by this node"
            )
        if message.round_ < round_:
            earlier.append(held)
        elif message.round_ == round_:
            own[held.place] = held
    return Recovered(own, tuple(earlier), tuple(support), frozenset(locks))


def recovered_step(own: Iterable[Held]) -> tuple[int, Step, Lock | None, bool] | None:
    """Attempt, step, lock and "already proposed" of a member that signed ``own``; None: it signed no vote."""
    decided = [held for held in own if held.message.kind in (Kind.PROPOSAL, Kind.PREVOTE, Kind.PRECOMMIT)]
    if not decided:
        return None
    attempt = max(held.message.attempt for held in decided)
    kinds = {held.message.kind for held in decided if held.message.attempt == attempt}
    step = Step.PROPOSE
    if Kind.PREVOTE in kinds:
        step = Step.PREVOTE
    if Kind.PRECOMMIT in kinds:
        step = Step.PRECOMMIT
    locked = [
        Lock(held.message.attempt, held.body.choice)
        for held in decided
        if isinstance(held.body, Precommit) and held.body.choice
    ]
    newest = max(locked, key=lambda lock: lock.attempt, default=None)
    return attempt, step, newest, Kind.PROPOSAL in kinds
