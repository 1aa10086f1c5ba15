"""Keeps the network process running: starts it, reads what it says, and starts it again when it ended."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import sys
from collections.abc import Callable

from sterna.errors import NodeError
from sterna.framing import PipeError
from sterna.net.pipe import Frames, pack

logger = logging.getLogger(__name__)

FIRST_RESTART_SECONDS = 0.1
LAST_RESTART_SECONDS = 5.0
STABLE_SECONDS = 30.0
"""A process that lived this long is restarted at once."""

START_ATTEMPTS = 3
"""Deaths before the first ``Listening`` that make ``open_net`` give up."""

CLOSE_SECONDS = 3.0

# glibc reserves 64 MiB of address space per thread arena, and address space is what the child's limit counts.
_ENVIRONMENT = {"MALLOC_ARENA_MAX": "2", "PYTHONUNBUFFERED": "1"}


class Supervisor:
    """One network process at a time, and the pipe to it.

    Args:
        config: the first message to each process.
        take: told each message; raises PipeError for one that it does not know.
        ended: the process that was there takes no more messages.
        restarting: another one is started soon; told the exit code of the last.

    ``writer`` leads to the process that runs, None while there is none. ``fatal`` is what it said before it
    ended of itself. Until ``has_listened`` is set, such an end and too many ends are final.
    """

    def __init__(
        self,
        *,
        config: Callable[[], dict[str, object]],
        take: Callable[[list[object]], None],
        ended: Callable[[], None],
        restarting: Callable[[int], None],
    ) -> None:
        self.writer: asyncio.StreamWriter | None = None
        self.fatal: Exception | None = None
        self.has_listened = False
        self._config = config
        self._take = take
        self._ended = ended
        self._restarting = restarting
        self._process: asyncio.subprocess.Process | None = None

    @property
    def process_id(self) -> int | None:
        """Of the network process; None while there is none."""
        return self._process.pid if self._process is not None else None

    async def run(self) -> None:
        """Start the process again and again, until cancelled.

        Raises:
            NodeError: it does not come up.
        """
        loop = asyncio.get_running_loop()
        delay = FIRST_RESTART_SECONDS
        for attempt in itertools.count(1):
            born = loop.time()
            code = await self._run_once()
            if not self.has_listened and (self.fatal is not None or attempt >= START_ATTEMPTS):
                raise self.fatal or NodeError(f"the network process ended {attempt} times with code {code}")
            logger.warning("net.restarting", extra={"exit_code": code, "delay_seconds": delay})
            self._restarting(code)
            delay = FIRST_RESTART_SECONDS if loop.time() - born > STABLE_SECONDS else delay
            await asyncio.sleep(delay)
            delay = min(2 * delay, LAST_RESTART_SECONDS)

    async def _run_once(self) -> int:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # the working directory is no place to import from
                "-m",
                "sterna.net.child",
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                env={**os.environ, **_ENVIRONMENT},
            )
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            writer.write(pack(["config", self._config()]))
            self.writer = writer
            await self._read(reader)
        except (ConnectionError, PipeError) as broken:
            logger.error("net.pipe_broken", extra={"why": str(broken)})
        finally:
            self.writer = None
            self._ended()
            writer.close()  # the child's sign to end
            code = await _reap(self._process)
            self._process = None
        return code

    async def _read(self, reader: asyncio.StreamReader) -> None:
        frames = Frames()
        while data := await reader.read(65536):
            for message in frames.feed(data):
                self._take(message)


async def _reap(process: asyncio.subprocess.Process) -> int:
    try:
        return await asyncio.wait_for(process.wait(), CLOSE_SECONDS)
    except TimeoutError:
        process.kill()
        return await process.wait()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
