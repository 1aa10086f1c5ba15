"""The pipe between core and network process: frames (sterna.framing), bounded both ways.

Each carries one msgpack array whose first element is a word.

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

from collections.abc import Iterator

from sterna import framing
from sterna.framing import Cutter, PipeError

MAX_FRAME_BYTES = 1024 * 1024 + 64 * 1024
"""The largest message is one sync response of 1 MiB; 64 KiB leaves room for the array around it."""


def pack(message: list[object]) -> bytes:
    """One frame.

    Raises:
        ValueError: the message is larger than a frame may be.
    """
    return framing.pack(message, MAX_FRAME_BYTES)


class Frames:
    """Cuts a byte stream into messages; holds at most one incomplete frame."""

    def __init__(self) -> None:
        self._cutter = Cutter(MAX_FRAME_BYTES)

    def feed(self, data: bytes) -> Iterator[list[object]]:
        """The messages that ``data`` completes.

        Raises:
            PipeError: a length over the limit, or a body that is not one msgpack array led by a word.
        """
        self._cutter.add(data)
        while (message := self._cutter.next()) is not None:
            if not isinstance(message, list) or not message or not isinstance(message[0], str):
                raise PipeError(f"a {type(message).__name__} that is not an array led by a word")
            yield message
