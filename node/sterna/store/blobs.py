"""Content-addressed files: bytes under their digest, whole or absent."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import suppress
from pathlib import Path

from sterna.errors import StorageError
from sterna.store.disk import TMP_SUFFIX, Disk, place
from sterna.store.failures import reported
from sterna_protocol.errors import LocalProtocolError
from sterna_protocol.wire.chunks import blob_digest, file_digest
from sterna_protocol.wire.ids import ID_BYTES

RESERVE_BYTES = 64 << 20
"""Blobs leave this much of the disk free: votes and certificates, small and irreplaceable, must still fit."""

PARTIAL_SECONDS = 24 * 3600
"""How long a download that stands still is kept: a peer that was off overnight goes on where it was."""

_NAME_LENGTH = 2 * ID_BYTES


class Blobs:
    """The folder ``<home>/blobs``. A blob of digest "ab12..." is the file ``ab/ab12...``, mode 0600.

    The network process adds whole, checked blobs by itself; while it fetches one, the file's name ends in
    ``.partial``. No name from the network is ever a path: a digest is 32 bytes and is written as hex. Safe
    to call from several threads.
    """

    def __init__(self, folder: Path, disk: Disk, *, read_only: bool) -> None:
        self._folder = folder
        self._disk = disk
        self._read_only = read_only

    def path(self, digest: bytes) -> Path:
        """Where the blob is, or would be."""
        if len(digest) != ID_BYTES:
            raise ValueError(f"a digest has {ID_BYTES} bytes, got {len(digest)}")
        name = digest.hex()
        return self._folder / name[:2] / name

    def has(self, digest: bytes) -> bool:
        return self.path(digest).is_file()

    def size(self, digest: bytes) -> int:
        """Bytes of the blob.

        Raises:
            StorageError: it is not here.
        """
        path = self.path(digest)
        with reported("a blob is missing", path):
            return path.stat().st_size

    def read(self, digest: bytes) -> bytes:
        """The blob, checked against its digest.

        Raises:
            StorageError: it is not here, or damaged; a damaged one is removed, so that it is fetched again.
        """
        path = self.path(digest)
        with reported("a blob cannot be read", path):
            data = path.read_bytes()
        if blob_digest(data) != digest:
            self._drop_damaged(path)
        return data

    def check(self, digest: bytes) -> None:
        """Return if the file of the blob has its digest, without taking it into memory at once.

        Raises:
            StorageError: as for ``read``.
        """
        path = self.path(digest)
        with reported("a blob cannot be read", path):
            found = _digest_of_file(path)
        if found != digest:
            self._drop_damaged(path)

    def put(self, data: bytes) -> bytes:
        """The digest of ``data``, which is on the disk when this returns.

        Raises:
            StorageError: the disk is full, read-only or broken; nothing was kept.
        """
        digest = blob_digest(data)
        path = self.path(digest)
        self._require_writable(path)
        with reported("a blob was not saved", path):
            self._disk.make_folder(path.parent)
            if self._is_whole(path, digest):
                self._disk.sync_folder(path.parent)
                return digest
            self._require_space(len(data))
            place(self._disk, path, data)
        return digest

    def collect(self, keep: AbstractSet[bytes]) -> int:
        """Delete every blob that is not in ``keep``, and abandoned downloads; the bytes that this freed.

        Raises:
            StorageError: the disk refused; what is in ``keep`` is untouched.
        """
        self._require_writable(self._folder)
        freed = 0
        with reported("old blobs were not deleted", self._folder):
            for path in list(self._files()):
                if bytes.fromhex(path.name) not in keep:
                    freed += self._remove(path)
            for path in list(self._folder.glob("??/*.partial")):
                if time.time() - path.stat().st_mtime > PARTIAL_SECONDS:
                    freed += self._remove(path)
        return freed

    def digests(self) -> Iterator[bytes]:
        """The digests of all blobs here."""
        with reported("the blobs cannot be listed", self._folder):
            for path in self._files():
                yield bytes.fromhex(path.name)

    def stored_bytes(self) -> int:
        """Bytes of all blobs here."""
        with reported("the blobs cannot be listed", self._folder):
            return sum(path.stat().st_size for path in self._files())

    def open(self) -> None:
        """Make the folders and delete what a crash left half-written; called with the home's lock held."""
        with reported("the blobs cannot be opened", self._folder):
            self._disk.make_folder(self._folder)
            for leftover in list(self._folder.glob(f"??/*{TMP_SUFFIX}")):
                self._disk.remove(leftover)

    def _files(self) -> Iterator[Path]:
        for shard in sorted(self._folder.glob("[0-9a-f][0-9a-f]")):
            for path in sorted(shard.iterdir()):
                if len(path.name) == _NAME_LENGTH and not set(path.name) - set("0123456789abcdef"):
                    yield path

    def _remove(self, path: Path) -> int:
        size = path.stat().st_size
        self._disk.remove(path)
        return size

    def _is_whole(self, path: Path, digest: bytes) -> bool:
        try:
            return _digest_of_file(path) == digest
        except FileNotFoundError:
            return False

    def _drop_damaged(self, path: Path) -> None:
        if self._read_only:
            raise StorageError(f"{path} is damaged; the running node removes it and fetches it again")
        with suppress(OSError):
            self._disk.remove(path)
        raise StorageError(f"{path} is damaged; it was removed, fetch it again from the swarm")

    def _require_writable(self, path: Path) -> None:
        if self._read_only:
            raise StorageError(f"{path}: this store was opened for reading only")

    def _require_space(self, size: int) -> None:
        free = self._disk.free_bytes(self._folder)
        if free < size + RESERVE_BYTES:
            raise StorageError(
                f"the disk is full: {self._folder} has {free >> 20} MiB left, and a blob of "
                f"{(size >> 20) + 1} MiB must leave {RESERVE_BYTES >> 20} MiB free for the journal; "
                f"free some space and try again, what was saved is safe"
            )


def _digest_of_file(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return _digest_of(descriptor)
    finally:
        os.close(descriptor)


def _digest_of(descriptor: int) -> bytes:
    size = os.fstat(descriptor).st_size
    try:
        return file_digest(lambda offset, length: os.pread(descriptor, length, offset), size)
    except LocalProtocolError as error:
        raise StorageError(f"a blob file was cut while it was read: {error}") from error
