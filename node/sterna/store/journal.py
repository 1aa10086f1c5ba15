"""The journal: one SQLite file in which a record, once acknowledged, stays."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from sterna.errors import StorageError
from sterna.store.disk import Disk
from sterna.store.failures import damaged, is_lost_write, reported
from sterna.store.schema import APPLICATION_ID, MIGRATIONS

Value = int | str | bytes | None
Row = tuple[Value, ...]

BUSY_MILLISECONDS = 5000
"""A reader in another process (`sterna status`) holds the file for milliseconds; five seconds is a fault."""

WRITES_PER_CHECKPOINT = 256
"""Moves the write-ahead log into the file about once in 50 rounds, at 1-2 MB; SQLite's own checkpoint is
off because it keeps a failed fsync to itself."""


class Journal:
    """An open ``state.db``: write-ahead log, ``synchronous=FULL``, one writer.

    A transaction is on the disk when the ``with`` of ``write`` ends, or it did not happen. After the disk
    failed (EIO) nothing more is written until the journal is opened anew; a full disk blocks nothing.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path, disk: Disk, *, read_only: bool) -> None:
        self._connection = connection
        self._path = path
        self._disk = disk
        self._refusal = f"{path} was opened for reading only" if read_only else None
        self._writes = 0

    @classmethod
    def open(cls, path: Path, disk: Disk, *, read_only: bool) -> Self:
        """The journal in ``path``, made if there is none, migrated and checked.

        Raises:
            StorageError: it is damaged, of a newer version, not a journal, or the disk refused.
        """
        with reported("the journal cannot be opened", path):
            if not read_only and not path.exists():
                # SQLite would make it readable by others; the -wal and -shm files take its mode.
                os.close(disk.create(path))
                disk.sync_folder(path.parent)
            # A reader opens it for writing too: beside the file lies the log's index, which it may make.
            connection = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, isolation_level=None)
            journal = cls(connection, path, disk, read_only=read_only)
            try:
                journal._configure(read_only)
                journal._migrate(read_only)
                journal._check()
            except BaseException:
                connection.close()
                raise
        # A record that a killed process left in the log without the last fsync is made durable here,
        # before anybody acts on it.
        journal.checkpoint()
        return journal

    @contextmanager
    def write(self, what: str) -> Iterator[sqlite3.Connection]:
        """A transaction; ``what`` names it to the user if it fails.

        Raises:
            StorageError: nothing of it was kept.
        """
        if self._refusal is not None:
            raise StorageError(f"{what}: {self._refusal}")
        try:
            with reported(what, self._path):
                self._disk.execute(self._connection, "BEGIN IMMEDIATE")
                try:
                    yield self._connection
                    self._disk.execute(self._connection, "COMMIT")
                finally:
                    if self._connection.in_transaction:
                        # The error on its way up says what happened; what is not committed is gone anyway.
                        with suppress(sqlite3.Error):
                            self._connection.rollback()
        except StorageError as error:
            self._stop_writing_after(error)
            raise
        self._writes += 1
        if self._writes % WRITES_PER_CHECKPOINT == 0:
            self.checkpoint()

    def read(self, sql: str, values: Sequence[Value] = ()) -> list[Row]:
        """The rows of a query.

        Raises:
            StorageError: the file is damaged or the disk failed.
        """
        with reported("the journal cannot be read", self._path):
            return self._connection.execute(sql, values).fetchall()

    def checkpoint(self) -> None:
        """Move the write-ahead log into the file. What it fails to move stays in the log, safe."""
        if self._refusal is not None:
            return
        try:
            with reported("the journal cannot be tidied", self._path):
                self._disk.execute(self._connection, "PRAGMA wal_checkpoint(PASSIVE)")
        except StorageError as error:
            # The records are durable in the log: a full disk here is nobody's concern yet.
            self._stop_writing_after(error)

    def close(self) -> None:
        self.checkpoint()
        with suppress(sqlite3.Error):
            self._connection.close()

    def _stop_writing_after(self, error: StorageError) -> None:
        if is_lost_write(error.__cause__):
            self._refusal = "the disk failed earlier; check it (dmesg, smartctl), then start again"

    def _configure(self, read_only: bool) -> None:
        pragmas = [
            f"busy_timeout = {BUSY_MILLISECONDS}",
            "foreign_keys = ON",
            "trusted_schema = OFF",
            "cell_size_check = ON",
            "wal_autocheckpoint = 0",
        ]
        pragmas += ["query_only = ON"] if read_only else ["synchronous = FULL", "fullfsync = ON"]
        for pragma in pragmas:
            self._connection.execute(f"PRAGMA {pragma}")
        if not read_only:
            self._disk.execute(self._connection, "PRAGMA journal_mode = WAL")

    def _migrate(self, read_only: bool) -> None:
        version = self._number("user_version")
        application = self._number("application_id")
        if application not in (0, APPLICATION_ID):
            raise StorageError(f"{self._path} is another program's file; choose another folder with --home")
        if version > len(MIGRATIONS):
            raise StorageError(
                f"{self._path} has version {version}, this sterna knows {len(MIGRATIONS)}: "
                f"install a newer sterna"
            )
        if read_only:
            if version < len(MIGRATIONS):
                raise StorageError(
                    f"{self._path} has version {version}, this sterna reads {len(MIGRATIONS)}: "
                    f"start the node once with this sterna"
                )
            return
        for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
            with self.write(f"the journal cannot be brought to version {number}") as db:
                for statement in statements:
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {number}")

    def _check(self) -> None:
        problems = [row[0] for row in self._connection.execute("PRAGMA quick_check(1)")]
        if problems != ["ok"]:
            raise StorageError(damaged(self._path, str(problems[0]).replace("\n", " ")))

    def _number(self, pragma: str) -> int:
        value: int = self._connection.execute(f"PRAGMA {pragma}").fetchone()[0]
        return value
