"""The pipe between core and network process: length-prefixed msgpack, bounded both ways.

Frame: u32 big-endian length, then one msgpack array whose first element is a word.

    core  -> child   ["config", {...}]   once, first
                     ["call", id, operation, [arguments]]
                     ["cancel", id]                 nobody waits for this call any more
    child -> core    ["done", id, value]
                     ["fail", id, kind, text]       kind: a key of process.ERRORS
                     ["event", class name, [fields]]
                     ["bound", [address]]           what it listens on, before the Listening event
                     ["fatal", kind, text]          last words before the process exits

Blobs never cross: both sides see the same folder.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgpack

MAX_FRAME_BYTES = 1024 * 1024 + 64 * 1024
"""The largest message is one sync response of 1 MiB; 64 KiB leaves room for the array around it."""

_HEADER = struct.Struct(">I")


class PipeError(Exception):
    """The other end wrote something that is no frame: one of the two programs is broken."""


def pack(message: list[object]) -> bytes:
    """One frame.

    Raises:
        ValueError: the message is larger than a frame may be.
    """
    body: bytes = msgpack.packb(message)
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError(f"a pipe frame of {len(body)} bytes, the limit is {MAX_FRAME_BYTES}")
    return _HEADER.pack(len(body)) + body


class Frames:
    """Cuts a byte stream into messages; holds at most one incomplete frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[list[object]]:
        """The messages that ``data`` completes.

        Raises:
            PipeError: a length over the limit, or a body that is not one msgpack array led by a word.
        """
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            (size,) = _HEADER.unpack_from(self._buffer)
            if size > MAX_FRAME_BYTES:
                raise PipeError(f"a frame of {size} bytes, the limit is {MAX_FRAME_BYTES}")
            end = _HEADER.size + size
            if len(self._buffer) < end:
                return
            body = bytes(memoryview(self._buffer)[_HEADER.size : end])
            del self._buffer[:end]
            try:
                message = msgpack.unpackb(body, max_ext_len=0)
            except (ValueError, msgpack.exceptions.UnpackException) as broken:
                raise PipeError(f"a frame of {size} bytes is not msgpack: {broken}") from broken
            if not isinstance(message, list) or not message or not isinstance(message[0], str):
                raise PipeError(f"a frame of {size} bytes is not an array led by a word")
            yield message
