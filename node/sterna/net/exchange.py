"""Pulling a blob by its digest from several peers at once (docs/spec/network.md, protocol /sterna/chunk/1).

    request    kind u8 | digest 32 | index u32      kind 1: page of the leaf list, 2: chunk
    response   status u8 | length u32 | bytes       status 0: here it is, 1: not here, 2: busy

Integers are big-endian. Requests are answered in their order, so several may be under way on one stream. A
page of the leaf list is 256 KiB of leaf hashes, as a chunk is of the blob.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from enum import IntEnum
from pathlib import Path

import trio

from sterna.errors import StorageError, Unreachable
from sterna.net.blobs import PartialBlob, find
from sterna.net.streams import Lost, Misbehaved, Stream, read_exactly, write_all
from sterna_protocol.errors import MalformedMessage
from sterna_protocol.wire.chunks import LeafList, chunk_count, chunk_length
from sterna_protocol.wire.ids import ID_BYTES
from sterna_protocol.wire.limits import MAX_BLOB_BYTES

PROTOCOL = "/sterna/chunk/1"

REQUEST = struct.Struct(">B32sI")
RESPONSE = struct.Struct(">BI")

PIPELINE = 4
"""Requests under way on one stream: 1 MiB, as much as fits the receive window and hides 50 ms at 20 MB/s."""

MAX_SOURCES = 8
"""Peers asked at the same time; more add no speed on one link."""

CHUNK_SECONDS = 30.0
"""For one chunk: 9 kB/s. A slower peer is left for another."""

AGAIN_SECONDS = 1.0
"""Pause before a peer that broke off or is busy is asked again."""


class Kind(IntEnum):
    LEAVES = 1
    CHUNK = 2


class Status(IntEnum):
    HERE = 0
    NOT_HERE = 1
    BUSY = 2


class _NotHere(Exception):
    """The peer does not have the blob; it never claimed to."""


class _Busy(Exception):
    """The peer serves too many others."""


Open = Callable[[bytes], Awaitable[Stream]]
"""Opens a stream of this protocol to a peer; raises Lost."""


async def fetch(
    digest: bytes,
    size: int,
    *,
    peers: Sequence[bytes],
    folder: Path,
    open_stream: Open,
    lied: Callable[[bytes, str], None],
    seconds: float,
) -> Path:
    """The path of the whole blob, after every chunk of it was checked.

    Peers that lie or do not have it are left; those that break off or are busy are asked again. The chunks
    that came are kept whatever happens, and the next fetch starts from them.

    Args:
        peers: whom to ask, best first.
        lied: told which peer sent what the digest refutes, and what.
        seconds: how long to try.

    Raises:
        Unreachable: the peers together did not give the whole blob.
        StorageError: the disk refused it.
        ValueError: ``size`` is more than a blob may have.
    """
    if not 0 <= size <= MAX_BLOB_BYTES:
        raise ValueError(f"a blob of {size} bytes, the limit is {MAX_BLOB_BYTES}")
    whole = await trio.to_thread.run_sync(find, folder, digest, size)
    if whole is not None:
        return whole
    download = _Download(digest, size, folder)
    waiting = deque(dict.fromkeys(peers))
    reasons: dict[bytes, str] = {}

    async def source() -> None:
        while waiting:
            peer = waiting.popleft()
            try:
                await download.pull(peer, open_stream)
            except Misbehaved as lie:
                lied(peer, str(lie))
                reasons[peer] = f"lied: {lie}"
            except _NotHere as why:
                reasons[peer] = str(why)
            except (Lost, _Busy) as why:
                reasons[peer] = str(why)
                await trio.sleep(AGAIN_SECONDS)
                waiting.append(peer)
            except StorageError as error:
                download.fail(error)

    async def sources() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(min(MAX_SOURCES, len(waiting))):
                nursery.start_soon(source)
        download.ended.set()

    try:
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sources)
                await download.ended.wait()
                # Whoever still waits for a slow peer waits for nothing.
                nursery.cancel_scope.cancel()
        return await download.result(reasons)
    finally:
        download.close()


class _Download:
    """What is still missing of one blob, and who was asked for it."""

    def __init__(self, digest: bytes, size: int, folder: Path) -> None:
        self._digest = digest
        self._size = size
        self._folder = folder
        self._partial: PartialBlob | None = None
        self._creating = trio.Lock()
        self._todo: deque[int] = deque()
        self._asked: dict[int, set[bytes]] = {}
        self._missing: set[int] = set(range(chunk_count(size)))
        self._changed = trio.Event()
        self._failure: StorageError | None = None
        self.ended = trio.Event()

    async def result(self, reasons: dict[bytes, str]) -> Path:
        """The finished file.

        Raises:
            StorageError: the disk refused.
            Unreachable: there are holes.
        """
        if self._failure is not None:
            raise self._failure
        if self._partial is None or self._missing:
            why = "; ".join(f"{peer[:4].hex()} {reason}" for peer, reason in list(reasons.items())[-4:])
            raise Unreachable(
                f"blob {self._digest.hex()[:8]}: {len(self._missing)} of {chunk_count(self._size)} chunks "
                f"missing ({why or 'no peer answered in time'})"
            )
        return await trio.to_thread.run_sync(self._partial.finish)

    def fail(self, error: StorageError) -> None:
        self._failure = error
        self.ended.set()

    def close(self) -> None:
        if self._partial is not None:
            self._partial.close()

    async def pull(self, peer: bytes, open_stream: Open) -> None:
        """Take from this peer whatever nobody else brings; returns when the blob is complete.

        Raises:
            Misbehaved: the peer lied.
            Lost, _NotHere, _Busy: it cannot help now.
            StorageError: the disk refused.
        """
        stream = await open_stream(peer)
        try:
            if self._partial is None:
                await self._learn_leaves(stream)
            await self._pull_chunks(peer, stream)
        finally:
            await stream.reset()

    async def _learn_leaves(self, stream: Stream) -> None:
        # Every source asks for itself, so one slow peer delays nobody: a leaf list is 1/8192 of its blob.
        total = chunk_count(self._size) * ID_BYTES
        data = bytearray()
        for page in range(chunk_count(total)):
            await _ask(stream, Kind.LEAVES, self._digest, page)
            data += await _answer(stream, chunk_length(total, page))
        try:
            leaves = LeafList.decode(bytes(data), digest=self._digest, size=self._size)
        except MalformedMessage as lie:
            raise Misbehaved(str(lie)) from lie
        async with self._creating:
            if self._partial is None:
                self._partial = await trio.to_thread.run_sync(PartialBlob, self._folder, leaves)
                self._missing = set(self._partial.missing)
                self._todo = deque(self._partial.missing)
                self._announce()

    async def _pull_chunks(self, peer: bytes, stream: Stream) -> None:
        partial = self._partial
        if partial is None:
            return
        under_way: deque[int] = deque()
        try:
            while self._missing:
                while len(under_way) < PIPELINE and (index := self._take(peer)) is not None:
                    under_way.append(index)
                    await _ask(stream, Kind.CHUNK, self._digest, index)
                if not under_way:
                    await self._changed.wait()
                    continue
                chunk = await _answer(stream, chunk_length(self._size, under_way[0]))
                index = under_way.popleft()
                if index in self._missing:
                    try:
                        await trio.to_thread.run_sync(partial.write, index, chunk)
                    except MalformedMessage as lie:
                        under_way.append(index)
                        raise Misbehaved(str(lie)) from lie
                    self._missing.discard(index)
                    self._announce()
        finally:
            for index in under_way:
                self._give_back(peer, index)

    def _take(self, peer: bytes) -> int | None:
        while self._todo:
            index = self._todo.popleft()
            if index in self._missing:
                self._asked[index] = {peer}
                return index
        # Nothing is left to start, but some chunks were given back and the last ones may hang on a slow peer.
        for index in self._missing:
            asked = self._asked[index]
            if peer not in asked and len(asked) < 2:
                asked.add(peer)
                return index
        return None

    def _give_back(self, peer: bytes, index: int) -> None:
        self._asked[index].discard(peer)
        self._announce()

    def _announce(self) -> None:
        if not self._missing:
            self.ended.set()
        self._changed.set()
        self._changed = trio.Event()


async def _ask(stream: Stream, kind: Kind, digest: bytes, index: int) -> None:
    await write_all(stream, REQUEST.pack(kind, digest, index), seconds=CHUNK_SECONDS)


async def _answer(stream: Stream, length: int) -> bytes:
    status, announced = RESPONSE.unpack(await read_exactly(stream, RESPONSE.size, seconds=CHUNK_SECONDS))
    if status == Status.NOT_HERE:
        raise _NotHere("does not have it")
    if status == Status.BUSY:
        raise _Busy("busy")
    if status != Status.HERE or announced != length:
        raise Misbehaved(f"status {status}, {announced} bytes announced where {length} are due")
    return await read_exactly(stream, length, seconds=CHUNK_SECONDS)
