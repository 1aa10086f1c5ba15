"""Blobs: content-addressed bytes, pulled from anybody chunk by chunk and checked before they are kept.

::

    chunk i   = bytes [i * 256 KiB, (i + 1) * 256 KiB) of the blob; the last may be shorter; none is empty,
                but the empty blob, which is one empty chunk
    leaf      = SHA-256(0x00 || chunk)
    node      = SHA-256(0x01 || left || right)      over the tree of RFC 6962: split n leaves at the largest
                                                    power of two below n
    digest    = SHA-256("sterna/blob/1" || size as u64 big-endian || root)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sterna_protocol.errors import LocalProtocolError, MalformedMessage
from sterna_protocol.wire.ids import ID_BYTES
from sterna_protocol.wire.limits import CHUNK_BYTES, MAX_BLOB_BYTES

__all__ = [
    "CHUNK_BYTES",
    "LeafList",
    "blob_digest",
    "chunk_count",
    "chunk_length",
    "digest_of",
    "file_digest",
    "leaf",
    "leaves",
]

_DOMAIN = b"sterna/blob/1"


def blob_digest(data: bytes | memoryview) -> bytes:
    """The digest that names ``data``."""
    return digest_of(leaves(data), len(data))


def leaves(data: bytes | memoryview) -> list[bytes]:
    """The leaf hash of each chunk, in order."""
    view = memoryview(data).cast("B")
    return [leaf(view[start : start + CHUNK_BYTES]) for start in range(0, max(len(view), 1), CHUNK_BYTES)]


def leaf(chunk: bytes | memoryview) -> bytes:
    """The leaf hash of one chunk."""
    digest = hashlib.sha256(b"\0")
    digest.update(chunk)
    return digest.digest()


def digest_of(leaves: Sequence[bytes], size: int) -> bytes:
    """The digest of the blob of ``size`` bytes with these leaf hashes.

    Raises:
        LocalProtocolError: a blob of ``size`` bytes has another number of leaves.
    """
    if len(leaves) != chunk_count(size):
        raise LocalProtocolError(f"{len(leaves)} leaves, a blob of {size} bytes has {chunk_count(size)}")
    return hashlib.sha256(_DOMAIN + size.to_bytes(8, "big") + _root(list(leaves))).digest()


def file_digest(read: Callable[[int, int], bytes], size: int) -> bytes:
    """The digest of ``size`` bytes that ``read(offset, length)`` returns, one chunk at a time.

    Raises:
        LocalProtocolError: ``read`` returns fewer bytes than asked for.
    """
    hashes = []
    for index in range(chunk_count(size)):
        length = chunk_length(size, index)
        chunk = read(index * CHUNK_BYTES, length)
        if len(chunk) != length:
            raise LocalProtocolError(
                f"read {len(chunk)} bytes at {index * CHUNK_BYTES}, expected {length}: the file changed"
            )
        hashes.append(leaf(chunk))
    return digest_of(hashes, size)


def chunk_count(size: int) -> int:
    """How many chunks a blob of ``size`` bytes has."""
    return max(1, -(-size // CHUNK_BYTES))


def chunk_length(size: int, index: int) -> int:
    """The length of chunk ``index`` of a blob of ``size`` bytes, in bytes.

    Raises:
        LocalProtocolError: the blob has no such chunk.
    """
    if not 0 <= index < chunk_count(size):
        raise LocalProtocolError(f"chunk {index}, a blob of {size} bytes has {chunk_count(size)}")
    return min(CHUNK_BYTES, size - index * CHUNK_BYTES)


@dataclass(frozen=True, slots=True)
class LeafList:
    """The leaf hashes of one blob, checked against its digest: what each chunk is checked against."""

    digest: bytes
    size: int
    hashes: tuple[bytes, ...]

    @classmethod
    def decode(cls, data: bytes, *, digest: bytes, size: int) -> LeafList:
        """The leaf hashes in ``data`` (32 bytes each, in order), which must give ``digest``.

        Raises:
            MalformedMessage: they do not, or ``size`` is not a size a blob may have.
        """
        # [REJECT] The size is one that a blob may have
        if not 0 <= size <= MAX_BLOB_BYTES:
            raise MalformedMessage(f"blob of {size} bytes, the limit is {MAX_BLOB_BYTES}")
        # [REJECT] There is one hash for each chunk
        if len(data) != chunk_count(size) * ID_BYTES:
            raise MalformedMessage(
                f"leaf list of {len(data)} bytes, a blob of {size} bytes has {chunk_count(size) * ID_BYTES}"
            )
        hashes = tuple(data[start : start + ID_BYTES] for start in range(0, len(data), ID_BYTES))
        # [REJECT] The hashes and the size give the digest
        if digest_of(hashes, size) != digest:
            raise MalformedMessage(f"leaf list does not give the digest {digest.hex()[:8]}")
        return cls(digest, size, hashes)

    @classmethod
    def of(cls, data: bytes | memoryview) -> LeafList:
        """The leaf hashes of a blob we hold."""
        hashes = tuple(leaves(data))
        return cls(digest_of(hashes, len(data)), len(data), hashes)

    def encode(self) -> bytes:
        """32 bytes a leaf, in order."""
        return b"".join(self.hashes)

    def check(self, index: int, chunk: bytes | memoryview) -> None:
        """Return if ``chunk`` is chunk ``index`` of the blob.

        Raises:
            MalformedMessage: it is not.
            LocalProtocolError: the blob has no chunk ``index``.
        """
        # [REJECT] The chunk has its length (checked before it is hashed)
        if len(chunk) != chunk_length(self.size, index):
            raise MalformedMessage(
                f"chunk {index} of {len(chunk)} bytes, expected {chunk_length(self.size, index)}"
            )
        # [REJECT] The chunk has its hash
        if leaf(chunk) != self.hashes[index]:
            raise MalformedMessage(f"chunk {index} of {self.digest.hex()[:8]} has another hash")


def _root(level: list[bytes]) -> bytes:
    # Pairing neighbours and carrying a lone last node upwards gives the tree of RFC 6962 section 2.1.
    while len(level) > 1:
        paired = [
            hashlib.sha256(b"\1" + level[i] + level[i + 1]).digest() for i in range(0, len(level) - 1, 2)
        ]
        if len(level) % 2:
            paired.append(level[-1])
        level = paired
    return level[0]
