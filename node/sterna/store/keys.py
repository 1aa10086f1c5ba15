"""The seed of a node's Ed25519 key: a file that only its owner reads."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

from sterna.errors import ConfigError
from sterna.store.disk import Disk, place

SEED_BYTES = 32


def read_seed(path: Path) -> bytes | None:
    """The 32-byte seed in ``path``; None if there is no such file.

    Raises:
        ConfigError: others can read the file, it is not ours, not a plain file, or not 32 bytes.
        OSError: the disk refused.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"the key {path} is not a plain file; put the file itself there")
        if status.st_uid != os.geteuid():
            raise ConfigError(f"the key {path} belongs to user {status.st_uid}; it must be yours: chown it")
        if stat.S_IMODE(status.st_mode) & 0o077:
            mode = f"{stat.S_IMODE(status.st_mode):04o}"
            raise ConfigError(
                f"the key {path} can be read by others (mode {mode}); if nobody has it, run: chmod 600 {path}"
            )
        seed = os.read(descriptor, SEED_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(seed) != SEED_BYTES:
        length = str(len(seed)) if len(seed) < SEED_BYTES else f"more than {SEED_BYTES}"
        raise ConfigError(
            f"the key {path} has {length} bytes, a seed has {SEED_BYTES}; put your copy of it back"
        )
    return seed


def next_seed(path: Path, disk: Disk) -> bytes:
    """The seed in ``path``, made if there is none: the same at every call until it is taken away.

    Raises:
        ConfigError: as ``read_seed``.
        OSError: the disk refused.
    """
    seed = read_seed(path)
    return create_seed(path, disk) if seed is None else seed


def create_seed(path: Path, disk: Disk, fresh: Callable[[int], bytes] = secrets.token_bytes) -> bytes:
    """A new seed, on the disk in ``path`` (mode 0600) when this returns. The caller holds the home's lock.

    Raises:
        FileExistsError: there is a file; a key is never replaced.
        OSError: the disk refused; no key file was made.
    """
    if path.is_symlink() or path.exists():
        raise FileExistsError(f"{path} exists")
    seed = fresh(SEED_BYTES)
    place(disk, path, seed)
    return seed
