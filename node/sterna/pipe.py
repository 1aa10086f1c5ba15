"""A spawned child and the pipe to it: frames (sterna.framing) over a socket pair, a map in each.

The parent is asyncio, the child plain blocking code. The
child gets one end of the pair as an inherited descriptor and its number as its first argument; it ends with
its parent, because the kernel kills it (PR_SET_PDEATHSIG) and because its reads return end of file.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Mapping
from typing import Any

from sterna.framing import Cutter, PipeError, pack

Message = dict[str, Any]
"""What a frame carries: words to numbers, strings, bytes, lists and maps."""

MAX_FRAME_BYTES = 3 * 1024**3
"""A round's job carries an adapter and what earlier deltas left out, 1 GiB each at most
(``wire.limits.MAX_ADAPTER_ELEMENTS``); for rank 8 on every linear of a 2 G base 88 and 44 MB. What claims to
be larger is no frame of ours."""

STDERR_LINES = 40
"""Last lines of a child's stderr that are kept to say why it died: a traceback and some more."""

TERMINATE_SECONDS = 5.0
"""How long a child may take to end after its pipe closed, before it is killed."""

_READ_BYTES = 1 << 20
_PR_SET_PDEATHSIG = 1


class ChildDied(Exception):
    """The child ended or broke the framing; the message says how."""


class Child:
    """The parent's end. Made by ``start_child``."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._frames = Cutter(MAX_FRAME_BYTES)
        self._last_lines: deque[str] = deque(maxlen=STDERR_LINES)
        self._stderr = asyncio.create_task(self._collect_stderr())

    @property
    def pid(self) -> int:
        return self._process.pid

    async def send(self, message: Message) -> None:
        """Write one frame.

        Raises:
            ValueError: it is larger than a frame may be.
            ChildDied: nobody reads any more.
        """
        try:
            self._writer.write(pack(message, MAX_FRAME_BYTES))
            await self._writer.drain()
        except OSError as error:
            raise await self._death() from error

    async def receive(self) -> Message:
        """The next frame.

        Raises:
            ChildDied: there will be none.
        """
        try:
            while (message := self._frames.next()) is None:
                data = await self._reader.read(_READ_BYTES)
                if not data:
                    raise await self._death()
                self._frames.add(data)
            return _map(message)
        except PipeError as broken:
            await self.close(kill=True)
            raise ChildDied(f"sent {broken}") from broken
        except OSError as error:
            raise await self._death() from error

    async def close(self, *, kill: bool = False) -> None:
        """End the child and wait until it is gone: by closing its pipe, or at once."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        if kill:
            self._kill()
        try:
            await asyncio.wait_for(self._process.wait(), TERMINATE_SECONDS)
        except TimeoutError:
            self._kill()
        finally:
            # Also when the wait was cancelled: no child stays behind.
            if self._process.returncode is None:
                self._kill()
        await self._process.wait()
        await self._stderr

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def _death(self) -> ChildDied:
        # The pipe can close a moment before the process is gone, or the child has only closed its end.
        await self.close()
        code = self._process.returncode
        if code is not None and code < 0:
            how = f"was killed by signal {-code} ({signal.strsignal(-code)})"
        else:
            how = f"ended with code {code}"
        last = next((line for line in reversed(self._last_lines) if line.strip()), "")
        return ChildDied(f"{how}: {last}" if last else how)

    async def _collect_stderr(self) -> None:
        assert self._process.stderr is not None  # for mypy: start_child asks for a pipe
        while chunk := await self._process.stderr.read(4096):
            self._last_lines.extend(chunk.decode("utf-8", "replace").splitlines())


async def start_child(module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Child:
    """Spawn ``python -m module FD arguments...`` and return the parent's end of its pipe.

    Args:
        environment: variables that the child gets beside the parent's own.
    """
    ours, theirs = socket.socketpair()
    try:
        # -P keeps the working folder, where anything may lie, off the child's module path.
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            module,
            str(theirs.fileno()),
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=(theirs.fileno(),),
            env={**os.environ, **(environment or {}), "STERNA_PARENT": str(os.getpid())},
        )
        reader, writer = await asyncio.open_connection(sock=ours)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return Child(process, reader, writer)


class ParentPipe:
    """The child's end: blocking."""

    def __init__(self, pipe: socket.socket) -> None:
        self._pipe = pipe
        self._frames = Cutter(MAX_FRAME_BYTES)

    def send(self, message: Message) -> None:
        """Write one frame.

        Raises:
            ValueError: it is larger than a frame may be.
        """
        self._pipe.sendall(pack(message, MAX_FRAME_BYTES))

    def receive(self) -> Message | None:
        """The next frame; waits for it. None when the parent is gone."""
        self._pipe.setblocking(True)
        while (message := self._frames.next()) is None:
            if not self._fill():
                return None
        return _map(message)

    def receive_nowait(self) -> Message | None:
        """The next frame if it has arrived; None otherwise.

        Raises:
            EOFError: the parent is gone.
        """
        self._pipe.setblocking(False)
        try:
            while (message := self._frames.next()) is None:
                if not self._fill():
                    raise EOFError
            return _map(message)
        except BlockingIOError:
            return None
        finally:
            self._pipe.setblocking(True)

    def _fill(self) -> bool:
        data = self._pipe.recv(_READ_BYTES)
        self._frames.add(data)
        return bool(data)


def connect_parent() -> ParentPipe:
    """The pipe this process was started with; from here on it dies with its parent.

    Raises:
        SystemExit: this process was not started by ``start_child``.
    """
    parent = os.environ.get("STERNA_PARENT", "")
    if len(sys.argv) < 2 or not sys.argv[1].isdigit() or not parent.isdigit():
        raise SystemExit(f"{sys.argv[0]} is started by Sterna itself, not by hand")
    # A Ctrl-C reaches the whole group; the parent decides what it means for this child.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        raise SystemExit("the parent is gone")
    return ParentPipe(socket.socket(fileno=int(sys.argv[1])))


def _map(message: object) -> Message:
    if not isinstance(message, dict):
        raise PipeError(f"a {type(message).__name__}, not a map")
    return message
