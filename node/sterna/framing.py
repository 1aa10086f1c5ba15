"""Frames on a pipe between two processes of one node: u32 big-endian length, then one msgpack value."""

from __future__ import annotations

import struct

import msgpack

_HEADER = struct.Struct(">I")


class PipeError(Exception):
    """The other end wrote something that is no frame: one of the two programs is broken."""


def pack(message: object, limit: int) -> bytes:
    """One frame.

    Args:
        limit: bytes that its body may have.

    Raises:
        ValueError: it is larger than that.
    """
    body: bytes = msgpack.packb(message)
    if len(body) > limit:
        raise ValueError(f"a pipe frame of {len(body)} bytes, the limit is {limit}")
    return _HEADER.pack(len(body)) + body


class Cutter:
    """Cuts a byte stream into messages; refuses bodies of more than ``limit`` bytes by their headers."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def add(self, data: bytes) -> None:
        self._buffer += data

    def next(self) -> object:
        """The next message; None when it has not arrived whole.

        Raises:
            PipeError: a length over the limit, or a body that is not msgpack.
        """
        if len(self._buffer) < _HEADER.size:
            return None
        (size,) = _HEADER.unpack_from(self._buffer)
        if size > self._limit:
            raise PipeError(f"a frame of {size} bytes, the limit is {self._limit}")
        end = _HEADER.size + size
        if len(self._buffer) < end:
            return None
        try:
            with memoryview(self._buffer) as whole, whole[_HEADER.size : end] as body:
                message: object = msgpack.unpackb(body, max_ext_len=0)
        except (ValueError, msgpack.exceptions.UnpackException) as broken:
            raise PipeError(f"a frame of {size} bytes that is not msgpack: {broken}") from broken
        if message is None:
            raise PipeError(f"a frame of {size} bytes that carries nothing")
        del self._buffer[:end]
        return message
