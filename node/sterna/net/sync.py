"""One question, one answer (docs/spec/network.md, protocol /sterna/sync/1).

request    length u32 | bytes      a stream each; integers big-endian
response   length u32 | bytes
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Awaitable, Callable

import trio

from sterna.net.streams import Lost, Misbehaved, Stream, read_exactly, write_all
from sterna_protocol.wire.limits import MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES

PROTOCOL = "/sterna/sync/1"

ANSWER_SECONDS = 10.0
"""From the request's last byte to the answer's first: our core may be waiting for its disk."""

REQUEST_SECONDS = 10.0
"""For a request of 64 KiB to arrive."""

RESPONSE_SECONDS = 30.0
"""For an answer of 1 MiB to leave: 35 kB/s."""

MAX_PENDING = 64
"""Requests of all peers that wait for our core."""

MAX_PENDING_PER_PEER = 8

_LENGTH = struct.Struct(">I")


async def ask(stream: Stream, data: bytes, *, seconds: float) -> bytes:
    """The answer to one request on a fresh stream.

    Raises:
        ValueError: the request is larger than it may be.
        Lost: no answer in time.
        Misbehaved: an answer larger than it may be.
    """
    if len(data) > MAX_REQUEST_BYTES:
        raise ValueError(f"a request of {len(data)} bytes, the limit is {MAX_REQUEST_BYTES}")
    with trio.move_on_after(seconds):
        await write_all(stream, _LENGTH.pack(len(data)) + data, seconds=seconds)
        (length,) = _LENGTH.unpack(await read_exactly(stream, _LENGTH.size, seconds=seconds))
        if length > MAX_RESPONSE_BYTES:
            raise Misbehaved(f"an answer of {length} bytes, the limit is {MAX_RESPONSE_BYTES}")
        return await read_exactly(stream, length, seconds=seconds)
    raise Lost(f"no answer within {seconds:g} s")


class SyncServer:
    """Hands requests to ``deliver(peer, request_id, data)`` and sends back what ``respond`` is given."""

    def __init__(self, deliver: Callable[[bytes, int, bytes], Awaitable[None]]) -> None:
        self._deliver = deliver
        # A restarted process must not take the core's answer to an old request for one of a new one.
        self._next = secrets.randbits(48)
        self._waiting: dict[int, tuple[trio.Event, list[bytes]]] = {}
        self._per_peer: dict[bytes, int] = {}

    def respond(self, request_id: int, data: bytes) -> None:
        """Answer one request; nothing happens if its peer has gone.

        Raises:
            ValueError: the answer is larger than it may be.
        """
        if len(data) > MAX_RESPONSE_BYTES:
            raise ValueError(f"an answer of {len(data)} bytes, the limit is {MAX_RESPONSE_BYTES}")
        if request_id in self._waiting:
            answered, box = self._waiting.pop(request_id)
            box.append(data)
            answered.set()

    async def serve(self, peer: bytes, stream: Stream) -> None:
        """Take one request and answer it.

        Raises:
            Lost: the stream broke, nobody answered in time, or too many requests wait.
            Misbehaved: a request larger than it may be.
        """
        (length,) = _LENGTH.unpack(await read_exactly(stream, _LENGTH.size, seconds=REQUEST_SECONDS))
        if length > MAX_REQUEST_BYTES:
            raise Misbehaved(f"a request of {length} bytes, the limit is {MAX_REQUEST_BYTES}")
        data = await read_exactly(stream, length, seconds=REQUEST_SECONDS)
        if len(self._waiting) >= MAX_PENDING or self._per_peer.get(peer, 0) >= MAX_PENDING_PER_PEER:
            raise Lost("too many requests wait")
        self._next += 1
        request_id = self._next
        answered, box = trio.Event(), list[bytes]()
        self._waiting[request_id] = (answered, box)
        self._per_peer[peer] = self._per_peer.get(peer, 0) + 1
        try:
            with trio.move_on_after(ANSWER_SECONDS):
                await self._deliver(peer, request_id, data)
                await answered.wait()
        finally:
            self._waiting.pop(request_id, None)
            self._per_peer[peer] -= 1
            if not self._per_peer[peer]:
                del self._per_peer[peer]
        if not box:
            raise Lost(f"no answer from our core within {ANSWER_SECONDS:g} s")
        await write_all(stream, _LENGTH.pack(len(box[0])) + box[0], seconds=RESPONSE_SECONDS)
