"""What sparse deltas left out, over crashes: counted exactly once, whatever became of the delta."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from sterna.errors import StorageError
from sterna.store.blobs import Blobs
from sterna.store.journal import Journal
from sterna_protocol.merge.feedback import Unsent
from sterna_protocol.merge.scheme import subspace_of
from sterna_protocol.swarm.charter import AdapterScheme
from sterna_protocol.wire.messages import Certificate


@dataclass(frozen=True, slots=True)
class _Residual:
    """Digests of what ``Unsent`` holds."""

    round_: int
    total: bytes
    sent: bytes | None


class Feedback:
    """The residual of each subspace (sterna_protocol.merge.feedback).

    A trained delta and its total are noted together (``Store.put_pending``). Which residual they leave is
    decided when the next round is trained: by the certificates, which are on the disk by then, and in one
    write. So a crash comes before the decision or after it, and the same certificates decide the same.
    """

    def __init__(self, journal: Journal, blobs: Blobs) -> None:
        self._journal = journal
        self._blobs = blobs

    def settle(self, swarm: bytes, scheme: AdapterScheme, round_: int) -> None:
        """Decide about the delta of an earlier round than ``round_``: no slate will still take it."""
        rows = self._journal.read(
            "SELECT round, delta, total FROM pending_delta "
            "WHERE swarm = ? AND round < ? AND total IS NOT NULL",
            (swarm, round_),
        )
        if not rows:
            return
        trained, delta, total = cast(tuple[int, bytes, bytes], rows[0])
        sent = delta if self._is_merged(swarm, trained, delta) else None
        with self._journal.write("what the last delta left out was not noted") as db:
            db.execute(
                "INSERT OR REPLACE INTO residual VALUES (?, ?, ?, ?, ?)",
                (swarm, subspace_of(scheme, trained), trained, total, sent),
            )
            db.execute("UPDATE pending_delta SET total = NULL WHERE swarm = ?", (swarm,))

    def unsent(self, swarm: bytes, subspace: int) -> Unsent | None:
        """What is left for ``subspace``; None if nothing is, or its blobs are gone or damaged."""
        kept = self._residual(swarm, subspace)
        if kept is None:
            return None
        try:
            total = self._blobs.read(kept.total)
            sent = None if kept.sent is None else self._blobs.read(kept.sent)
        except StorageError:
            return None
        return Unsent(kept.round_, total, sent)

    def promised(self) -> set[bytes]:
        """Blobs that are needed to know what is left."""
        pending = self._journal.read("SELECT total FROM pending_delta WHERE total IS NOT NULL")
        kept = self._journal.read("SELECT total, sent FROM residual")
        return {cast(bytes, blob) for row in (*pending, *kept) for blob in row if blob is not None}

    def _residual(self, swarm: bytes, subspace: int) -> _Residual | None:
        rows = self._journal.read(
            "SELECT round, total, sent FROM residual WHERE swarm = ? AND subspace = ?", (swarm, subspace)
        )
        return _Residual(*cast(tuple[int, bytes, bytes | None], rows[0])) if rows else None

    def _is_merged(self, swarm: bytes, trained: int, delta: bytes) -> bool:
        frames = self._journal.read(
            "SELECT frame FROM certificate WHERE swarm = ? AND round >= ? ORDER BY round", (swarm, trained)
        )
        return any(
            entry.delta == delta
            for (frame,) in frames
            for entry in Certificate.decode(cast(bytes, frame)[1:]).decision.entries
        )
