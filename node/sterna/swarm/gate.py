"""The own hold-out gate: which certified adapter this node serves.

A certificate says that the swarm agrees, not that the result is good. A node follows the chain whatever it
says, for that is what the others train from; it answers prompts with an adapter only if its own text, which
nobody trains on, does not speak against it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from sterna.errors import NodeError
from sterna_protocol.wire.chunks import blob_digest
from sterna_protocol.wire.ids import short

logger = logging.getLogger(__name__)

DEFAULT_TOLERANCE = 0.1
"""Nats per token by which a new adapter may be worse than the served one. Learning the others' texts may cost
a little on one's own; an adapter that was attacked costs whole nats."""


@dataclass(frozen=True, slots=True)
class Judged:
    """The adapter certified in ``round_`` (by its digest) and its loss on the own hold-out text, nats per
    token. Round 0 stands for the base without an adapter."""

    round_: int
    adapter: bytes
    loss: float


class Verdicts(Protocol):
    """Where the gate finds adapters and keeps what it decided; ``put_verdict`` returns when it is durable."""

    def has_blob(self, digest: bytes) -> bool: ...
    async def read_blob(self, digest: bytes) -> bytes: ...
    async def put_verdict(self, served: Judged, newest: Judged) -> None: ...


class Gate:
    """Judges each newest certified adapter once. ``served`` is what the node answers with, ``newest`` what
    was judged last; None until the first was judged.

    Args:
        judge: the loss of an encoded adapter on the own hold-out text; raises a NodeError.
        base: the adapter before round 1, which changes nothing.
        tolerance: nats per token, 0 or more.
    """

    def __init__(
        self,
        verdicts: Verdicts,
        judge: Callable[[bytes], Awaitable[float]],
        *,
        base: bytes,
        tolerance: float = DEFAULT_TOLERANCE,
        served: Judged | None = None,
        newest: Judged | None = None,
    ) -> None:
        self.served = served
        self.newest = newest
        self._verdicts = verdicts
        self._judge = judge
        self._base = base
        self._tolerance = tolerance
        self._lock = asyncio.Lock()

    @property
    def is_holding_back(self) -> bool:
        """Whether the newest adapter is followed but not served."""
        return (
            self.served is not None and self.newest is not None and self.served.adapter != self.newest.adapter
        )

    async def consider(self, round_: int, adapter: bytes) -> None:
        """Decide about the adapter certified in ``round_``, whose blob is held.

        Both adapters are judged on the text as it is now. If that fails, what is served stays, and the next
        round's adapter is judged against it.

        Raises:
            StorageError: the decision could not be kept, or a blob not be read.
        """
        async with self._lock:
            if self.newest is not None and (self.newest.round_ >= round_ or self.newest.adapter == adapter):
                return
            old = self.served
            if old is None or not self._verdicts.has_blob(old.adapter):
                old = Judged(0, blob_digest(self._base), 0.0)
            old_blob = self._base if old.round_ == 0 else await self._verdicts.read_blob(old.adapter)
            new_blob = await self._verdicts.read_blob(adapter)
            try:
                old = Judged(old.round_, old.adapter, await self._judge(old_blob))
                new = Judged(round_, adapter, await self._judge(new_blob))
            except NodeError as failed:
                logger.warning("adapter.unjudged", extra={"round": round_, "why": str(failed)})
                return
            # A loss that is no number is not below anything.
            is_good = new.loss <= old.loss + self._tolerance
            served = new if is_good else old
            await self._verdicts.put_verdict(served, new)
            self.served, self.newest = served, new
        if not is_good:
            logger.warning(
                "adapter.held_back",
                extra={"round": round_, "adapter": short(adapter), "loss": new.loss, "served": old.loss},
            )
