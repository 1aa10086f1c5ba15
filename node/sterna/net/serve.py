"""Serving blobs: any piece of any blob in the folder to whoever knows its digest, at a fair rate."""

from __future__ import annotations

from pathlib import Path

import trio

from sterna.net.blobs import BlobReader
from sterna.net.exchange import CHUNK_SECONDS, REQUEST, RESPONSE, Kind, Status
from sterna.net.pace import Budget
from sterna.net.streams import Lost, Misbehaved, Stream, read_exactly, write_all
from sterna_protocol.errors import LocalProtocolError
from sterna_protocol.wire.chunks import CHUNK_BYTES, chunk_length

IDLE_SECONDS = 60.0
"""Longest wait for the next request on an open stream."""

MAX_SERVING = 32
"""Answers under way at the same time, over all peers: 8 MiB of chunks in memory."""

MAX_HASHING = 1
"""Leaf lists computed at the same time: one of a large base keeps a core busy for seconds."""

STREAMS_PER_PEER = 2
"""A second one for a second blob; more only take turns."""

BYTES_PER_SECOND = 64 * 1024 * 1024
"""To one peer; the library moves less than this, so it only stops a loop on a very fast machine."""

_PEERS_REMEMBERED = 1024


class BlobServer:
    """Answers /sterna/chunk/1."""

    def __init__(self, folder: Path) -> None:
        self._blobs = BlobReader(folder)
        self._serving = trio.CapacityLimiter(MAX_SERVING)
        self._hashing = trio.CapacityLimiter(MAX_HASHING)
        self._streams: dict[bytes, int] = {}
        self._budgets: dict[bytes, Budget] = {}

    async def serve(self, peer: bytes, stream: Stream) -> None:
        """Answer requests on one stream until the peer ends it.

        Raises:
            Lost: it broke, or the peer asked for nothing for a minute.
            Misbehaved: a request that no correct peer sends.
        """
        if self._streams.get(peer, 0) >= STREAMS_PER_PEER:
            await write_all(stream, RESPONSE.pack(Status.BUSY, 0), seconds=CHUNK_SECONDS)
            raise Lost("too many streams")
        self._streams[peer] = self._streams.get(peer, 0) + 1
        try:
            while True:
                request = await read_exactly(stream, REQUEST.size, seconds=IDLE_SECONDS)
                kind, digest, index = REQUEST.unpack(request)
                async with self._serving:
                    data = await self._find(kind, digest, index)
                    if data is None:
                        await write_all(stream, RESPONSE.pack(Status.NOT_HERE, 0), seconds=CHUNK_SECONDS)
                        continue
                    await trio.sleep(self._budget(peer).wait(len(data), trio.current_time()))
                    answer = RESPONSE.pack(Status.HERE, len(data)) + data
                    await write_all(stream, answer, seconds=CHUNK_SECONDS)
        finally:
            self._streams[peer] -= 1
            if not self._streams[peer]:
                del self._streams[peer]

    async def _find(self, kind: int, digest: bytes, index: int) -> bytes | None:
        if kind in (Kind.CHUNK, Kind.LEAVES):
            leaves = self._blobs.known(digest)
            if leaves is None:
                async with self._hashing:
                    leaves = await trio.to_thread.run_sync(self._blobs.leaves, digest)
            if leaves is None:
                return None
            if kind == Kind.CHUNK:
                return await trio.to_thread.run_sync(self._blobs.chunk, leaves, index)
            pages = leaves.encode()
            try:
                length = chunk_length(len(pages), index)
            except LocalProtocolError:
                return None
            return pages[index * CHUNK_BYTES : index * CHUNK_BYTES + length]
        raise Misbehaved(f"request of kind {kind}")

    def _budget(self, peer: bytes) -> Budget:
        if peer not in self._budgets:
            while len(self._budgets) >= _PEERS_REMEMBERED:
                self._budgets.pop(next(iter(self._budgets)))
            self._budgets[peer] = Budget(
                rate=BYTES_PER_SECOND, burst=BYTES_PER_SECOND, now=trio.current_time()
            )
        return self._budgets[peer]
