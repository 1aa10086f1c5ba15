"""The memory of a node: what it must still know after it was killed at any moment."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, cast

from sterna.errors import ConfigError, StorageError
from sterna.home import prepare_home
from sterna.store.addresses import AddressBook
from sterna.store.blobs import Blobs
from sterna.store.disk import TMP_SUFFIX, Disk
from sterna.store.failures import reported
from sterna.store.feedback import Feedback
from sterna.store.identity import Identity, require_memory_of
from sterna.store.journal import Journal, Row
from sterna.store.lock import lock_home
from sterna.store.settings import put_setting, setting
from sterna_protocol.swarm.charter import SignedCharter
from sterna_protocol.wire.ids import sha256, short
from sterna_protocol.wire.messages import Certificate, Figures, Kind, decode_frame


@dataclass(frozen=True, slots=True)
class Membership:
    """A swarm this node is in. ``data`` is the path of the user's text, "" for none."""

    swarm: bytes
    signed_charter: bytes
    data: str
    addresses: tuple[str, ...]
    role: str


@dataclass(frozen=True, slots=True)
class PendingDelta:
    """A delta that is trained and in the blobs: after a crash it is announced, not trained again.

    ``total``: the blob of all there was to send, where the codec leaves something out (store.feedback).
    """

    round_: int
    base_adapter: bytes
    delta: bytes
    figures: Figures
    total: bytes | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """A certified adapter and its loss on the own hold-out text, nats per token, maybe NaN."""

    round_: int
    adapter: bytes
    loss: float


def open_store(home: Path, *, read_only: bool = False, disk: Disk | None = None) -> Store:
    """The store in ``home``, locked for this process alone, checked, its leftovers swept.

    With ``read_only`` it is neither made nor locked nor changed: `sterna status` beside a running node.

    Raises:
        ConfigError: ``home`` cannot be a node's home, or holds none and ``read_only`` is set.
        StorageError: in use by another process, damaged, on a read-only or full disk.
    """
    disk = disk or Disk()
    if read_only:
        if not (home / "state.db").exists():
            raise ConfigError(f"{home} holds no node; make one with `sterna init`, or name it with --home")
        journal = Journal.open(home / "state.db", disk, read_only=True)
        return Store(home, journal, Blobs(home / "blobs", disk, read_only=True), disk, lock=None)
    with reported("the home folder cannot be opened", home):
        prepare_home(home)
        lock = lock_home(home)
    try:
        require_memory_of(home)
        journal = Journal.open(home / "state.db", disk, read_only=False)
        try:
            blobs = Blobs(home / "blobs", disk, read_only=False)
            blobs.open()
            with reported("the home folder cannot be tidied", home):
                for leftover in home.glob(f"key.*{TMP_SUFFIX}"):
                    disk.remove(leftover)
        except BaseException:
            journal.close()
            raise
    except BaseException:
        os.close(lock)
        raise
    return Store(home, journal, blobs, disk, lock=lock)


class Store:
    """Everything a node keeps: key, swarms, own messages, certificates, evidence, blobs, address book.

    Synchronous; called from the thread that opened it (``blobs`` from any). What a ``put`` saved is on the
    disk when it returns. Each method raises StorageError when the disk refuses; after a full disk the store
    can still be read, and written again once there is space.
    """

    def __init__(self, home: Path, journal: Journal, blobs: Blobs, disk: Disk, *, lock: int | None) -> None:
        self.home = home
        self.blobs = blobs
        self.feedback = Feedback(journal, blobs)
        self.address_book = AddressBook(journal)
        self._identity = Identity(home, journal, disk, may_write=lock is not None)
        self._journal = journal
        self._lock = lock

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Tidy up and let the home go; a store that is never closed loses nothing."""
        self._journal.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # Identity

    def key(self) -> bytes:
        """The 32-byte seed of this node's key; raises as ``Identity.key``."""
        return self._identity.key()

    def adopt_next_key(self) -> bytes:
        """Go over to the next key for good; returns its seed. Raises as ``Identity.adopt_next_key``."""
        return self._identity.adopt_next_key()

    # Swarms

    def add_swarm(
        self, signed_charter: bytes, *, data: str = "", addresses: Iterable[str] = (), role: str = "train"
    ) -> bytes:
        """The id of the swarm, remembered with how we take part; a known swarm gets the new data and role.

        Raises:
            ProtocolError: not a charter, or not signed by its founders.
        """
        signed = SignedCharter.decode(signed_charter)
        signed.verify()
        swarm = signed.charter.swarm_id
        with self._journal.write("the swarm was not saved") as db:
            db.execute(
                "INSERT INTO swarm (id, charter, data, addresses, role) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET data = excluded.data, addresses = excluded.addresses, "
                "role = excluded.role",
                (swarm, signed_charter, data, json.dumps(list(addresses)), role),
            )
        return swarm

    def swarms(self) -> list[Membership]:
        rows = self._journal.read("SELECT id, charter, data, addresses, role FROM swarm ORDER BY id")
        return [_membership(row) for row in rows]

    def swarm(self, swarm: bytes) -> Membership:
        """Our membership of ``swarm``.

        Raises:
            StorageError: we have none.
        """
        rows = self._journal.read(
            "SELECT id, charter, data, addresses, role FROM swarm WHERE id = ?", (swarm,)
        )
        if not rows:
            raise StorageError(f"{self.home} knows no swarm {short(swarm)}; join it first with its ticket")
        return _membership(rows[0])

    # Own messages: written before they are sent

    def put_own(self, swarm: bytes, round_: int, attempt: int, kind: int, frame: bytes) -> None:
        """Keep a message of ours for ever; only after this may it be sent. The same frame again is nothing.

        Raises:
            StorageError: another frame stands in this place: to send both would be a contradiction that
                everybody can prove.
        """
        place = (swarm, round_, attempt, int(kind))
        with self._journal.write("our own message was not saved") as db:
            kept = db.execute(
                "SELECT frame FROM own_message WHERE swarm = ? AND round = ? AND attempt = ? AND kind = ?",
                place,
            ).fetchone()
            if kept is None:
                db.execute("INSERT INTO own_message VALUES (?, ?, ?, ?, ?)", (*place, frame))
            elif kept[0] != frame:
                raise StorageError(
                    f"swarm {short(swarm)}, round {round_}, attempt {attempt}: this node already signed "
                    f"another {_kind_name(kind)}; it must send that one"
                )

    def own_frames(self, swarm: bytes, first: int, last: int | None = None) -> list[bytes]:
        """Our messages of the rounds ``first`` to ``last`` (without it only ``first``), oldest first."""
        rows = self._journal.read(
            "SELECT frame FROM own_message WHERE swarm = ? AND round BETWEEN ? AND ? "
            "ORDER BY round, attempt, kind",
            (swarm, first, first if last is None else last),
        )
        return [cast(bytes, row[0]) for row in rows]

    # Certificates

    def put_certificate(self, swarm: bytes, round_: int, frame: bytes) -> None:
        """Append the certificate of a round to the chain. One of the same decision again is nothing.

        Raises:
            MalformedMessage: ``frame`` is no certificate.
            StorageError: it is another swarm's or round's, contradicts the one we have, or leaves a gap.
        """
        certificate = decode_frame(frame)
        if (
            not isinstance(certificate, Certificate)
            or certificate.swarm != swarm
            or certificate.round_ != round_
        ):
            raise StorageError(f"this is not the certificate of swarm {short(swarm)}, round {round_}")
        with self._journal.write("the certificate was not saved") as db:
            kept = db.execute(
                "SELECT decision FROM certificate WHERE swarm = ? AND round = ?", (swarm, round_)
            ).fetchone()
            if kept is not None and kept[0] == certificate.id:
                return
            if kept is not None:
                raise StorageError(
                    f"swarm {short(swarm)}: round {round_} is closed with decision {short(kept[0])}, "
                    f"a certificate for {short(certificate.id)} contradicts it"
                )
            newest = db.execute(
                "SELECT round, decision FROM certificate WHERE swarm = ? ORDER BY round DESC LIMIT 1",
                (swarm,),
            ).fetchone()
            if newest is not None and (newest[0] != round_ - 1 or newest[1] != certificate.decision.previous):
                raise StorageError(
                    f"swarm {short(swarm)}: the certificate of round {round_} does not follow ours of "
                    f"round {newest[0]}"
                )
            db.execute("INSERT INTO certificate VALUES (?, ?, ?, ?)", (swarm, round_, certificate.id, frame))

    def certificates(self, swarm: bytes, first: int = 0, count: int = -1) -> list[bytes]:
        """Up to ``count`` frames (all: -1) of the chain from round ``first`` on, oldest first."""
        rows = self._journal.read(
            "SELECT frame FROM certificate WHERE swarm = ? AND round >= ? ORDER BY round LIMIT ?",
            (swarm, first, count),
        )
        return [cast(bytes, row[0]) for row in rows]

    def head(self, swarm: bytes) -> bytes | None:
        """The frame of the newest certificate."""
        rows = self._journal.read(
            "SELECT frame FROM certificate WHERE swarm = ? ORDER BY round DESC LIMIT 1", (swarm,)
        )
        return cast(bytes, rows[0][0]) if rows else None

    # Evidence against others

    def put_evidence(self, swarm: bytes, frame: bytes) -> None:
        """Keep a proof that a peer contradicted itself. The same again is nothing."""
        digest = sha256(b"sterna/evidence/1", frame)
        with self._journal.write("the evidence was not saved") as db:
            db.execute("INSERT INTO evidence VALUES (?, ?, ?) ON CONFLICT DO NOTHING", (swarm, digest, frame))

    def evidence(self, swarm: bytes) -> list[bytes]:
        rows = self._journal.read("SELECT frame FROM evidence WHERE swarm = ? ORDER BY digest", (swarm,))
        return [cast(bytes, row[0]) for row in rows]

    # The delta between training and its announcement

    def put_pending(self, swarm: bytes, pending: PendingDelta) -> None:
        """Remember what was trained, its blob first; a later one takes its place."""
        for blob in (pending.delta, pending.total):
            if blob is not None and not self.blobs.has(blob):
                raise StorageError(f"the delta {short(blob)} is not among the blobs; put it there first")
        figures = pending.figures.encode()
        with self._journal.write("the trained delta was not noted") as db:
            db.execute(
                "INSERT OR REPLACE INTO pending_delta VALUES (?, ?, ?, ?, ?, ?)",
                (swarm, pending.round_, pending.base_adapter, pending.delta, figures, pending.total),
            )

    def pending(self, swarm: bytes) -> PendingDelta | None:
        """The newest delta that was trained; None if there is none or its blob is gone or damaged."""
        rows = self._journal.read(
            "SELECT round, base_adapter, delta, figures, total FROM pending_delta WHERE swarm = ?", (swarm,)
        )
        if not rows:
            return None
        round_, base_adapter, delta, figures, total = cast(
            tuple[int, bytes, bytes, bytes, bytes | None], rows[0]
        )
        try:
            self.blobs.check(delta)
        except StorageError:
            return None
        return PendingDelta(round_, base_adapter, delta, Figures.decode(figures), total)

    # What the own hold-out text says of certified adapters

    def put_verdicts(self, swarm: bytes, *, served: Verdict, newest: Verdict) -> None:
        """Note which adapter is served and which was judged last, both or neither."""
        with self._journal.write("which adapter is served was not noted") as db:
            for what, verdict in (("served", served), ("newest", newest)):
                db.execute(
                    "INSERT OR REPLACE INTO verdict VALUES (?, ?, ?, ?, ?)",
                    (swarm, what, verdict.round_, verdict.adapter, verdict.loss),
                )

    def verdicts(self, swarm: bytes) -> tuple[Verdict, Verdict] | None:
        """What is served and what was judged last; None if nothing was judged."""
        rows = self._journal.read(
            "SELECT round, adapter, loss FROM verdict WHERE swarm = ? ORDER BY what DESC", (swarm,)
        )
        if len(rows) != 2:
            return None
        typed = cast(list[tuple[int, bytes, float | None]], rows)
        served, newest = (
            Verdict(round_, adapter, math.nan if loss is None else loss) for round_, adapter, loss in typed
        )
        return served, newest

    # What people look at

    def put_round_log(self, swarm: bytes, round_: int, entry: str) -> None:
        """Note what `sterna rounds` shows of a round (JSON); the newest note counts."""
        with self._journal.write("the round's log was not saved") as db:
            db.execute("INSERT OR REPLACE INTO round_log VALUES (?, ?, ?)", (swarm, round_, entry))

    def round_log(self, swarm: bytes, first: int = 0, count: int = -1) -> list[tuple[int, str]]:
        """Up to ``count`` (round, JSON) from round ``first`` on, oldest first."""
        rows = self._journal.read(
            "SELECT round, entry FROM round_log WHERE swarm = ? AND round >= ? ORDER BY round LIMIT ?",
            (swarm, first, count),
        )
        return cast(list[tuple[int, str]], rows)

    def put_setting(self, name: str, value: str) -> None:
        put_setting(self._journal, name, value)

    def setting(self, name: str) -> str | None:
        return setting(self._journal, name)

    # Room on the disk

    def collect(self, also_keep: AbstractSet[bytes] = frozenset()) -> int:
        """Delete the blobs that no promise covers; the bytes that this freed.

        Kept are ``also_keep`` (what the open round has fetched), each swarm's base and pending delta, what
        sparse deltas left out, the adapter that is served, the slates and adapters of its last
        ``retention_rounds`` certificates, and the adapter that the first of these started from.
        """
        return self.blobs.collect(self._promised() | also_keep)

    def _promised(self) -> set[bytes]:
        keep = {cast(bytes, row[0]) for row in self._journal.read("SELECT delta FROM pending_delta")}
        keep |= self.feedback.promised()
        keep |= {cast(bytes, row[0]) for row in self._journal.read("SELECT adapter FROM verdict")}
        for membership in self.swarms():
            charter = SignedCharter.decode(membership.signed_charter).charter
            keep.add(charter.base)
            newest = self._journal.read(
                "SELECT frame FROM certificate WHERE swarm = ? ORDER BY round DESC LIMIT ?",
                (membership.swarm, charter.limits.retention_rounds + 1),
            )
            for age, (frame,) in enumerate(newest):
                decision = Certificate.decode(cast(bytes, frame)[1:]).decision
                keep.add(decision.adapter)
                if age < charter.limits.retention_rounds:
                    keep.update(entry.delta for entry in decision.entries)
        return keep


def _membership(row: Row) -> Membership:
    swarm, charter, data, addresses, role = cast(tuple[bytes, bytes, str, str, str], row)
    return Membership(swarm, charter, data, tuple(json.loads(addresses)), role)


def _kind_name(kind: int) -> str:
    return Kind(kind).name.lower() if kind in Kind.__members__.values() else f"message of kind {kind}"
