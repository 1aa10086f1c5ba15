"""Every change a node makes to its disk, one call each, so that a test can stop it before any of them."""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TMP_SUFFIX = ".tmp"
"""Ends the name of every file that is not whole yet; a store deletes what it finds of them when it opens."""

_PIECE_BYTES = 1 << 20


def _go_on(_step: str) -> None:
    return


@dataclass(frozen=True, slots=True)
class Disk:
    """The disk as the store changes it.

    ``before`` hears the name of each change right before it is made. What it raises is taken for the
    disk's own answer; the crash tests kill the process in it.
    """

    before: Callable[[str], None] = _go_on

    def create(self, path: Path) -> int:
        """A descriptor of the new file ``path``, readable by its owner only; an existing one is refused."""
        self.before("create")
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def write(self, descriptor: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self.before("write")
            view = view[os.write(descriptor, view[:_PIECE_BYTES]) :]

    def sync(self, descriptor: int) -> None:
        self.before("sync")
        os.fsync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        self.before("rename")
        source.replace(target)

    def remove(self, path: Path) -> None:
        self.before("remove")
        path.unlink(missing_ok=True)

    def make_folder(self, path: Path) -> None:
        """``path`` is a folder, and its parent's entry for it is on the disk."""
        if path.is_dir():
            return
        self.before("make folder")
        path.mkdir(mode=0o700, exist_ok=True)
        self.sync_folder(path.parent)

    def sync_folder(self, path: Path) -> None:
        """The names in ``path`` survive a power cut: a rename alone does not promise that."""
        self.before("sync folder")
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def execute(self, connection: sqlite3.Connection, statement: str) -> sqlite3.Cursor:
        """Run a statement that makes SQLite write: BEGIN, COMMIT, a checkpoint."""
        self.before(statement)
        return connection.execute(statement)

    def free_bytes(self, path: Path) -> int:
        """Bytes a user without privileges may still write on the disk that holds ``path``."""
        status = os.statvfs(path)
        return status.f_bavail * status.f_frsize


def place(disk: Disk, path: Path, data: bytes) -> None:
    """``path`` holds ``data``, durably; a crash at any moment leaves the old file or the new one, whole.

    Raises:
        OSError: the disk refused; ``path`` is as it was.
    """
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}{TMP_SUFFIX}")
    descriptor = disk.create(partial)
    try:
        try:
            disk.write(descriptor, data)
            disk.sync(descriptor)
        finally:
            os.close(descriptor)
        disk.rename(partial, path)
    except BaseException:
        # The error on its way up says what happened; a file that stays is deleted at the next start.
        with suppress(OSError):
            disk.remove(partial)
        raise
    disk.sync_folder(path.parent)
