"""Real nodes on loopback for the tests: their events, awaited instead of slept for."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

from sterna.net import Gossip, Net, NetConfig, NetEvent, PeerConnected, Request, open_net
from sterna.net.blobs import path_of
from sterna_protocol.wire.chunks import blob_digest

E = TypeVar("E", bound=NetEvent)

PATIENCE_SECONDS = 40.0
"""Until a test gives up; the machine may be busy with other work."""


class Watch:
    """Collects a node's events and lets a test wait for one; answers requests with their echo."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.seen: list[NetEvent] = []
        self._more = asyncio.Condition()

    async def run(self) -> None:
        async for event in self.net.events():
            if isinstance(event, Request):
                await self.net.respond(event.request_id, event.peer[:1] + event.data)
            async with self._more:
                self.seen.append(event)
                self._more.notify_all()

    async def until(
        self, kind: type[E], matches: Callable[[E], bool] = lambda _: True, *, after: int = 0
    ) -> E:
        """The first event of this kind that matches, not counting the first ``after`` events."""
        async with asyncio.timeout(PATIENCE_SECONDS), self._more:
            while True:
                for event in self.seen[after:]:
                    if isinstance(event, kind) and matches(event):
                        return event
                await self._more.wait()

    def count(self, kind: type[NetEvent]) -> int:
        return sum(isinstance(event, kind) for event in self.seen)


@contextlib.asynccontextmanager
async def node(folder: Path, number: int, *bootstrap: str, **settings: Any) -> AsyncIterator[Watch]:
    """Node ``number`` with its own folder and key, on a port that the system chooses."""
    config = NetConfig(
        identity_seed=bytes([number]) * 32,
        listen=("/ip4/127.0.0.1/tcp/0",),
        bootstrap=bootstrap,
        topic="sterna/test",
        blobs=folder / str(number),
        **settings,
    )
    async with open_net(config) as net:
        watch = Watch(net)
        task = asyncio.create_task(watch.run())
        try:
            yield watch
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def meet(*watches: Watch) -> None:
    """Wait until every node is connected to at least one other."""
    for watch in watches:
        await watch.until(PeerConnected)


async def gossip_until_heard(speaker: Watch, *listeners: Watch, text: bytes = b"anyone?") -> None:
    """Say something until all have heard it: what is said before the mesh stands may be lost."""

    async with asyncio.timeout(PATIENCE_SECONDS):
        for attempt in range(1000):
            said = text + b" %d" % attempt
            await speaker.net.publish(said)
            try:
                async with asyncio.timeout(1.0):
                    for listener in listeners:
                        await listener.until(
                            Gossip, lambda g: g.author == speaker.net.peer and g.data.startswith(text)
                        )
                return
            except TimeoutError:
                continue


def put(folder: Path, data: bytes) -> bytes:
    """A blob in a node's folder; its digest."""
    digest = blob_digest(data)
    path = path_of(folder, digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return digest


@contextlib.asynccontextmanager
async def program(module: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A helper program of the tests, ended by the end of its input."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "ignore",
        "-m",
        module,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]
