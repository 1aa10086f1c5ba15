"""Streams in memory for the exchange and sync protocols, with the faults a network has."""

from __future__ import annotations

import math

import trio

from sterna.net.streams import Lost


class MemoryStream:
    """One end of a pair; what one end writes the other reads."""

    def __init__(
        self, send: trio.MemorySendChannel[bytes], receive: trio.MemoryReceiveChannel[bytes]
    ) -> None:
        self._send = send
        self._receive = receive
        self._buffer = b""
        self.was_reset = False

    async def read(self, size: int) -> bytes:
        if not self._buffer:
            try:
                self._buffer = await self._receive.receive()
            except (trio.EndOfChannel, trio.ClosedResourceError) as end:
                raise Lost("ended") from end
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    async def write(self, data: bytes) -> None:
        try:
            await self._send.send(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as gone:
            raise Lost("gone") from gone

    async def close(self) -> None:
        self._send.close()

    async def reset(self) -> None:
        self.was_reset = True
        self._send.close()
        self._receive.close()


def pair() -> tuple[MemoryStream, MemoryStream]:
    a_send, b_receive = trio.open_memory_channel[bytes](math.inf)
    b_send, a_receive = trio.open_memory_channel[bytes](math.inf)
    return MemoryStream(a_send, a_receive), MemoryStream(b_send, b_receive)
