"""Opening a home: the store, locked for a node or only read by everybody else."""

from __future__ import annotations

from pathlib import Path

from sterna.home import home_folder
from sterna.store import Store, open_store


def open_home(home: Path | None) -> Store:
    """The store of ``home`` (or the default), locked for this process.

    Raises:
        StorageError: another node runs in it, or the disk refuses.
    """
    return open_store(home_folder(home))


def open_home_for_reading(home: Path | None) -> Store:
    """The same without the lock, for commands that only look; a node may be running in it.

    Raises:
        StorageError: there is no state to read.
    """
    return open_store(home_folder(home), read_only=True)
