"""One node a home: a lock that ends with the process that holds it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from sterna.errors import StorageError


def lock_home(home: Path) -> int:
    """A descriptor that keeps ``home`` ours until it is closed or this process ends, however it ends.

    The file stays when the lock goes: deleting it would let two processes lock two files of one name.

    Raises:
        StorageError: another process holds the lock.
        OSError: the file cannot be made.
    """
    path = home / "lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        who = f"process {holder}" if holder.isdigit() else "another process"
        raise StorageError(
            f"{home} is in use by {who}; stop it, or give this node a folder of its own with --home"
        ) from error
    except BaseException:
        os.close(descriptor)
        raise
    _sign(descriptor)
    return descriptor


def _sign(descriptor: int) -> None:
    """Say who holds the lock; a full disk must not stop a node for want of that courtesy."""
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
    except OSError:
        return
