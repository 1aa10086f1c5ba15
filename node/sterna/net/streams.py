"""A byte stream to a peer, as our protocols need it: every read and write has a size and a deadline."""

from __future__ import annotations

from typing import Protocol

import trio


class Lost(Exception):
    """The stream ended, broke, or was too slow; the peer may be honest."""


class Misbehaved(Exception):
    """The peer sent what no correct peer sends."""


CLOSE_SECONDS = 2.0
"""For a farewell; a peer that does not take it is left without."""


def farewell() -> trio.CancelScope:
    """A scope for saying goodbye, which a cancelled task may still do for a moment."""
    return trio.CancelScope(deadline=trio.current_time() + CLOSE_SECONDS, shield=True)


class Stream(Protocol):
    """One stream of one connection; raises nothing but ``Lost``."""

    async def read(self, size: int) -> bytes:
        """At least one byte, at most ``size``."""

    async def write(self, data: bytes) -> None: ...

    async def close(self) -> None:
        """Say politely that we write no more."""

    async def reset(self) -> None:
        """Forget the stream, both directions."""


async def read_exactly(stream: Stream, size: int, *, seconds: float) -> bytes:
    """The next ``size`` bytes.

    Raises:
        Lost: the stream ended first, or the bytes took longer than ``seconds``.
    """
    data = bytearray()
    with trio.move_on_after(seconds) as deadline:
        while len(data) < size:
            data += await stream.read(size - len(data))
    if deadline.cancelled_caught:
        raise Lost(f"{len(data)} of {size} bytes in {seconds:g} s")
    return bytes(data)


async def write_all(stream: Stream, data: bytes, *, seconds: float) -> None:
    """Hand all of ``data`` to the stream.

    Raises:
        Lost: the stream broke, or the peer took longer than ``seconds`` to make room.
    """
    with trio.move_on_after(seconds) as deadline:
        await stream.write(data)
    if deadline.cancelled_caught:
        raise Lost(f"{len(data)} bytes not written in {seconds:g} s")
