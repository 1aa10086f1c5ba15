"""Whose home it is: the key, the journal that remembers what it signed, and the going over to a next key."""

from __future__ import annotations

from pathlib import Path

from sterna.errors import ConfigError
from sterna.store.disk import Disk
from sterna.store.failures import reported
from sterna.store.journal import Journal
from sterna.store.keys import create_seed, read_seed
from sterna.store.settings import put_setting, setting
from sterna_protocol.wire.signing import SigningKey

_IDENTITY = "identity"
_NEXT_IDENTITY = "next_identity"

NEXT_KEY = "key.next"
"""The key that takes the place of ``key`` in the round that certifies it."""


def require_memory_of(home: Path) -> None:
    """Return unless there is a key without its journal: it has forgotten what it signed.

    Raises:
        ConfigError: so it is.
    """
    if (home / "key").exists() and not (home / "state.db").exists():
        raise ConfigError(
            f"{home} has a key but no state.db, which remembers what the key signed; put state.db back, "
            f"or move {home} away to start as a new peer"
        )


class Identity:
    """The key in ``home`` and the peer id that the journal knows it by.

    Each method raises StorageError when the disk refuses.

    Args:
        may_write: whether this process holds the home's lock.
    """

    def __init__(self, home: Path, journal: Journal, disk: Disk, *, may_write: bool) -> None:
        self._home = home
        self._journal = journal
        self._disk = disk
        self._may_write = may_write

    def key(self) -> bytes:
        """The 32-byte seed of this node's key; made, and on the disk, at the first call.

        Raises:
            ConfigError: the key file is readable by others, cut short, or another node's.
            StorageError: the disk refused, or there is no key and nothing may be written.
        """
        path = self._home / "key"
        with reported("the key cannot be read", path):
            seed = read_seed(path)
        known = setting(self._journal, _IDENTITY)
        if seed is None:
            if known is not None:
                raise ConfigError(
                    f"the key {path} is gone; put your copy of it back, or move {self._home} away to start "
                    f"as a new peer"
                )
            if not self._may_write:
                raise ConfigError(f"{self._home} has no key yet; make it with `sterna init`")
            with reported("the key was not saved", path):
                seed = create_seed(path, self._disk)
        peer = SigningKey.from_seed(seed).peer.hex()
        if known is None and self._may_write:
            put_setting(self._journal, _IDENTITY, peer)
        elif known is not None and known != peer and setting(self._journal, _NEXT_IDENTITY) == peer:
            # The process ended between the two last steps of ``adopt_next_key``.
            if self._may_write:
                put_setting(self._journal, _IDENTITY, peer)
        elif known is not None and known != peer:
            raise ConfigError(
                f"the key {path} is another node's: {self._home} belongs to {known[:8]}, the key to "
                f"{peer[:8]}; put the right key back"
            )
        return seed

    def adopt_next_key(self) -> bytes:
        """Go over to the key that `sterna id rotate` made, for good; returns its seed.

        A delta that waits is forgotten: it names the old key as its author. A crash at any moment leaves the
        old key or the new one, and the same call finishes what is left.

        Raises:
            ConfigError: there is no such key.
        """
        path = self._home / NEXT_KEY
        with reported("the next key cannot be read", path):
            seed = read_seed(path)
        if seed is None:
            raise ConfigError(f"{path} is gone, and the swarm knows this node by it: put it back")
        peer = SigningKey.from_seed(seed).peer.hex()
        with self._journal.write("the old key's delta was not forgotten") as db:
            db.execute("DELETE FROM pending_delta")
        put_setting(self._journal, _NEXT_IDENTITY, peer)
        with reported("the key was not replaced", path):
            self._disk.rename(path, self._home / "key")
            self._disk.sync_folder(self._home)
        put_setting(self._journal, _IDENTITY, peer)
        return seed
