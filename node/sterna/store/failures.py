"""What a failure of the disk means for the person in front of it, in one line."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sterna.errors import StorageError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
_MISPLACED = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}
_FAILED = {errno.EIO}


@contextmanager
def reported(what: str, path: Path) -> Iterator[None]:
    """What the disk refuses inside becomes a StorageError that names ``what``, ``path`` and the way out.

    Raises:
        StorageError: for each OSError and sqlite3.Error inside.
    """
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise StorageError(_line(error, what, path)) from error


def refused_by_disk(error: OSError) -> str | None:
    """One line for a file that somebody named and the disk does not give or take; None for anything else."""
    if error.errno in _FULL:
        where = "" if error.filename is None else f" at {error.filename}"
        return f"the disk is full{where}; free some space and try again, what was saved is safe"
    if error.errno in _READ_ONLY | _MISPLACED and error.filename is not None:
        return f"{error.filename}: {error.strerror}; name another place"
    return None


def is_lost_write(error: BaseException | None) -> bool:
    """Whether the disk may have dropped bytes that it had taken.

    After a failed fsync the kernel forgets which pages were not written, and the next fsync succeeds
    without them; so nothing written later can be promised either (Rebello et al., "Can Applications
    Recover from fsync Failures?", USENIX ATC 2020).
    """
    if isinstance(error, sqlite3.Error):
        return _sqlite_code(error) == sqlite3.SQLITE_IOERR
    return isinstance(error, OSError) and error.errno in _FAILED


def _line(error: OSError | sqlite3.Error, what: str, path: Path) -> str:
    if isinstance(error, sqlite3.Error):
        code = _sqlite_code(error)
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return damaged(path, str(error))
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return f"{what}: another program keeps {path} busy; close it and try again"
        full = code == sqlite3.SQLITE_FULL
        read_only = code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)
        failed = code == sqlite3.SQLITE_IOERR
    else:
        full, read_only, failed = (error.errno in kinds for kinds in (_FULL, _READ_ONLY, _FAILED))
    if full:
        return f"{what}: the disk is full at {path}; free some space and try again, what was saved is safe"
    if read_only:
        return f"{what}: {path} cannot be written ({error}); make it writable or choose another with --home"
    if failed:
        return (
            f"{what}: the disk failed at {path} ({error}); nothing more is written until the next start, "
            f"check the disk (dmesg, smartctl) before that"
        )
    return f"{what}: {path}: {error}"


def damaged(path: Path, reason: str) -> str:
    """The line for a journal that cannot be read: why a copy of yesterday's is no way out."""
    return (
        f"{path} is damaged ({reason}); a node that forgets what it signed contradicts itself, so do not use "
        f"an older copy: move {path.parent} away and start again as a new peer with `sterna init`"
    )


def _sqlite_code(error: sqlite3.Error) -> int | None:
    # The low byte is the primary code; the rest of the number refines it.
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF
