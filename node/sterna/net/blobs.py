"""The blob folder as the network process sees it: read what is there, add what has been checked.

::

    <folder>/ab/<hex>           a whole blob; ab = the first two digits of its digest; never changes
    <folder>/ab/<hex>.partial   chunks at their places, written only after they were checked

Functions here block; callers run them in a thread.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

from sterna.errors import StorageError
from sterna_protocol.errors import LocalProtocolError, MalformedMessage
from sterna_protocol.wire.chunks import CHUNK_BYTES, LeafList, chunk_count, chunk_length, digest_of, leaf

MAX_CACHED_LEAVES = 1 << 18
"""Leaf hashes kept for serving: 8 MiB for 64 GiB of blobs. Hashing a blob again costs 2 s a GiB."""


def path_of(folder: Path, digest: bytes) -> Path:
    name = digest.hex()
    return folder / name[:2] / name


class BlobReader:
    """Serves pieces of whole blobs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._leaves: OrderedDict[bytes, LeafList] = OrderedDict()

    def chunk(self, leaves: LeafList, index: int) -> bytes | None:
        """Chunk ``index`` of a blob; None if it has no such chunk or the file has changed.

        It is checked like a chunk that arrives: a node with a bad disk must not look like a liar.
        """
        try:
            with path_of(self._folder, leaves.digest).open("rb", buffering=0) as file:
                data = os.pread(file.fileno(), chunk_length(leaves.size, index), index * CHUNK_BYTES)
            leaves.check(index, data)
        except (OSError, LocalProtocolError, MalformedMessage):
            return None
        return data

    def known(self, digest: bytes) -> LeafList | None:
        """The leaf hashes of a blob that was asked for before; does not block."""
        if digest in self._leaves:
            self._leaves.move_to_end(digest)
        return self._leaves.get(digest)

    def leaves(self, digest: bytes) -> LeafList | None:
        """The leaf hashes of a blob; None if there is none, or what is there has another digest."""
        try:
            with path_of(self._folder, digest).open("rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                hashes = tuple(
                    leaf(os.pread(file.fileno(), CHUNK_BYTES, index * CHUNK_BYTES))
                    for index in range(chunk_count(size))
                )
        except OSError:
            return None
        if digest_of(hashes, size) != digest:
            return None
        self._leaves[digest] = LeafList(digest, size, hashes)
        while sum(len(known.hashes) for known in self._leaves.values()) > MAX_CACHED_LEAVES:
            self._leaves.popitem(last=False)
        return LeafList(digest, size, hashes)


def find(folder: Path, digest: bytes, size: int) -> Path | None:
    """The path of a whole blob, if we have it."""
    path = path_of(folder, digest)
    with suppress(OSError):
        if path.stat().st_size == size:
            return path
    return None


class PartialBlob:
    """A blob that is being fetched; what an earlier attempt left is checked again and kept."""

    def __init__(self, folder: Path, leaves: LeafList) -> None:
        """
        Raises:
            StorageError: the folder cannot be written.
        """
        self._leaves = leaves
        self._path = path_of(folder, leaves.digest)
        self._partial = self._path.with_name(self._path.name + ".partial")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self.missing = [i for i in range(len(leaves.hashes)) if not self._has(i)]
            os.ftruncate(self._file, leaves.size)
        except OSError as error:
            raise StorageError(f"{self._partial}: {error.strerror}") from error

    def _has(self, index: int) -> bool:
        try:
            self._leaves.check(
                index, os.pread(self._file, chunk_length(self._leaves.size, index), index * CHUNK_BYTES)
            )
        except MalformedMessage:
            return False
        return True

    def write(self, index: int, chunk: bytes) -> None:
        """Check one chunk, then keep it.

        Raises:
            MalformedMessage: it is not this blob's chunk; nothing was written.
            StorageError: the disk refused it.
        """
        self._leaves.check(index, chunk)
        try:
            written = os.pwrite(self._file, chunk, index * CHUNK_BYTES)
        except OSError as error:
            raise StorageError(f"{self._partial}: {error.strerror}") from error
        if written != len(chunk):
            raise StorageError(f"{self._partial}: {written} of {len(chunk)} bytes written: is the disk full?")

    def finish(self) -> Path:
        """Make the whole blob visible under its name, for good; its path.

        Raises:
            StorageError: the disk refused; the partial file stays.
        """
        try:
            os.fsync(self._file)
            self._partial.rename(self._path)
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise StorageError(f"{self._path}: {error.strerror}") from error
        return self._path

    def close(self) -> None:
        os.close(self._file)
