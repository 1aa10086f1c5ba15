"""The core's side of the network: calls to the network process, and the events that it sends.

This side never imports trio or libp2p.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sterna.errors import ConfigError, StorageError, Unreachable
from sterna.framing import PipeError
from sterna.net.events import (
    Gossip,
    Listening,
    NetEvent,
    NetRestarted,
    PeerBanned,
    PeerConnected,
    PeerDisconnected,
    PeerLied,
    Request,
)
from sterna.net.pipe import pack
from sterna.net.supervisor import Supervisor
from sterna_protocol.wire.ids import ID_BYTES
from sterna_protocol.wire.limits import MAX_FRAME_BYTES, MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES

START_SECONDS = 60.0
"""Until the first ``Listening``: importing the library takes 1.3 s on an idle core, more on a busy one."""

RESTART_GRACE_SECONDS = 10.0
"""A call made while the process restarts waits this long for the new one."""

MAX_EVENTS = 4096
"""Events that wait for the core; beyond that gossip is dropped, which the protocol bears."""

MAX_REDIAL = 64
"""Dialled addresses that a restarted process dials again."""

ERRORS: dict[str, type[Exception]] = {
    "unreachable": Unreachable,
    "storage": StorageError,
    "config": ConfigError,
    "value": ValueError,
}
"""What the child's failures are on this side."""

_EVENTS: dict[str, type[NetEvent]] = {
    event.__name__: event
    for event in (Listening, PeerConnected, PeerDisconnected, Gossip, Request, PeerLied, PeerBanned)
}


@dataclass(frozen=True, slots=True)
class NetConfig:
    """How one node takes part in one swarm.

    Args:
        identity_seed: 32-byte Ed25519 seed; the PeerID follows from it.
        listen: multiaddrs such as "/ip4/0.0.0.0/tcp/4001"; port 0 lets the system choose; empty: nowhere.
        bootstrap: full multiaddrs with /p2p/<PeerID>, dialled whenever they are not connected.
        topic: gossip topic, "sterna/<swarm id in hex>".
        blobs: content-addressed folder to serve from and fetch into.
        network_key: 32 bytes that all members of a private network hold; empty: none.
        address_space_mib: RLIMIT_AS of the network process. An idle one needs about 260 MiB; the rest is
            what peers can make the library buffer before it dies and is started again.
    """

    identity_seed: bytes = field(repr=False)
    listen: tuple[str, ...]
    bootstrap: tuple[str, ...]
    topic: str
    blobs: Path
    network_key: bytes = field(default=b"", repr=False)
    address_space_mib: int = 1024


class _ProcessDied(Unreachable):
    """The network process ended while it worked on this call."""


class Net:
    """One node's network, made by ``open_net``; any task of the event loop may call it."""

    def __init__(self, config: NetConfig) -> None:
        self.peer: bytes = (
            Ed25519PrivateKey.from_private_bytes(config.identity_seed).public_key().public_bytes_raw()
        )
        self.addresses: tuple[str, ...] = ()
        self.restarts = 0
        self.dropped_events = 0
        self._config = config
        self._listen = config.listen
        self._redial: deque[str] = deque(maxlen=MAX_REDIAL)
        self._events: asyncio.Queue[NetEvent] = asyncio.Queue()
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._ids = itertools.count(1)
        self._up = asyncio.Event()
        self._supervisor = Supervisor(
            config=self._first_message, take=self._take, ended=self._ended, restarting=self._restarting
        )
        self._running: asyncio.Task[None] | None = None

    @property
    def process_id(self) -> int | None:
        """Of the network process; None while there is none."""
        return self._supervisor.process_id

    async def events(self) -> AsyncIterator[NetEvent]:
        """What happens, in order. One consumer; the iterator never ends by itself."""
        while True:
            yield await self._events.get()

    async def publish(self, data: bytes) -> None:
        """Gossip to everybody, at most one message each 10 ms; delivery is likely, not certain.

        Raises:
            ValueError: more than 16 KiB.
            Unreachable: the network process is not there.
        """
        if len(data) > MAX_FRAME_BYTES:
            raise ValueError(f"a gossip message of {len(data)} bytes, the limit is {MAX_FRAME_BYTES}")
        await self._call("publish", data)

    async def request(self, peer: bytes, data: bytes, *, timeout: float = 10.0) -> bytes:
        """A connected peer's answer, at most 1 MiB.

        Raises:
            ValueError: the request is more than 64 KiB, or the peer is not a key.
            Unreachable: not connected, or no correct answer in time.
        """
        if len(data) > MAX_REQUEST_BYTES:
            raise ValueError(f"a request of {len(data)} bytes, the limit is {MAX_REQUEST_BYTES}")
        _check_peers(peer)
        answer: bytes = await self._call("request", peer, data, timeout)
        return answer

    async def respond(self, request_id: int, data: bytes) -> None:
        """Answer a ``Request``; nothing happens if its peer no longer waits.

        Raises:
            ValueError: the answer is more than 1 MiB.
        """
        if len(data) > MAX_RESPONSE_BYTES:
            raise ValueError(f"an answer of {len(data)} bytes, the limit is {MAX_RESPONSE_BYTES}")
        with suppress(Unreachable):
            await self._call("respond", request_id, data)

    async def fetch(self, digest: bytes, size: int, peers: Sequence[bytes], *, timeout: float) -> Path:
        """The file of a whole blob, each chunk checked before it was written.

        It starts from what an earlier try left. A peer that sends what the digest refutes is left out,
        penalised, and named in a ``PeerLied`` event.

        Raises:
            Unreachable: the peers did not give all of it in ``timeout`` seconds.
            StorageError: the disk refused it.
            ValueError: no blob may be that large, or a peer is not a key.
        """
        _check_peers(*peers)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            try:
                return Path(
                    await self._call("fetch", digest, size, list(peers), max(0.1, deadline - loop.time()))
                )
            except _ProcessDied:
                if loop.time() >= deadline:
                    raise

    async def dial(self, address: str) -> bytes:
        """Connect to a full multiaddr; the peer's key.

        A connection that is lost later is dialled again for an hour.

        Raises:
            ValueError: not a full TCP multiaddr of an Ed25519 peer.
            Unreachable: nobody there, or somebody else.
        """
        peer: bytes = await self._call("dial", address)
        if address not in self._redial:
            self._redial.append(address)
        return peer

    async def known_addresses(self) -> dict[bytes, tuple[str, ...]]:
        """Where the peers connected now say they listen; those that say nothing are left out."""
        known = await self._call("known_addresses")
        return {peer: tuple(addresses) for peer, addresses in known}

    async def penalise(self, peer: bytes, points: int) -> None:
        """Count ``points`` against a peer; at ``score.LIMIT`` it is disconnected and banned for a while.

        Raises:
            ValueError: the peer is not a key, or the points are negative.
        """
        _check_peers(peer)
        if points < 0:
            raise ValueError(f"{points} points: a penalty is not negative")
        await self._call("penalise", peer, points)

    async def close(self) -> None:
        """End the network process; open calls fail."""
        if self._running is not None:
            self._running.cancel()
            with suppress(asyncio.CancelledError):
                await self._running
            self._running = None

    # --- calls ----------------------------------------------------------------------------------------------

    async def _call(self, operation: str, *arguments: object) -> Any:
        if not self._up.is_set():
            if self._running is None or self._running.done():
                raise Unreachable("the network is closed")
            try:
                await asyncio.wait_for(self._up.wait(), RESTART_GRACE_SECONDS)
            except TimeoutError:
                raise _ProcessDied("the network process does not come back") from None
        writer = self._supervisor.writer
        if writer is None:
            raise _ProcessDied("the network process ended")
        call_id = next(self._ids)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls[call_id] = future
        try:
            writer.write(pack(["call", call_id, operation, list(arguments)]))
            with suppress(ConnectionError):  # then the process is gone, and the future says so
                await writer.drain()
            return await future
        except asyncio.CancelledError:
            if self._supervisor.writer is writer:
                writer.write(pack(["cancel", call_id]))
            raise
        finally:
            self._calls.pop(call_id, None)

    # --- the process ----------------------------------------------------------------------------------------

    async def _start(self) -> None:
        self._running = asyncio.create_task(self._supervisor.run(), name="net.supervisor")
        up = asyncio.create_task(self._up.wait())
        try:
            await asyncio.wait(
                {up, self._running}, timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if self._running.done():
                self._running.result()
            if not self._up.is_set():
                raise Unreachable(f"the network process does not listen after {START_SECONDS:g} s")
        except BaseException:
            await self.close()
            raise
        finally:
            up.cancel()

    def _ended(self) -> None:
        self._up.clear()
        for future in self._calls.values():
            if not future.done():
                future.set_exception(_ProcessDied("the network process ended before it answered"))

    def _restarting(self, exit_code: int) -> None:
        self.restarts += 1
        self._put(NetRestarted(exit_code))

    def _first_message(self) -> dict[str, object]:
        return {
            "identity_seed": self._config.identity_seed,
            "network_key": self._config.network_key,
            "listen": list(self._listen),
            "bootstrap": list(self._config.bootstrap),
            "redial": list(self._redial),
            "topic": self._config.topic,
            "blobs": str(self._config.blobs),
            "address_space_mib": self._config.address_space_mib,
            "parent": os.getpid(),
            "log_level": logging.getLogger("sterna").getEffectiveLevel(),
        }

    def _take(self, message: list[Any]) -> None:
        match message:
            case ["done", int(call_id), value]:
                if (future := self._calls.get(call_id)) is not None and not future.done():
                    future.set_result(value)
            case ["fail", int(call_id), str(kind), str(text)] if kind in ERRORS:
                if (future := self._calls.get(call_id)) is not None and not future.done():
                    future.set_exception(ERRORS[kind](text))
            case ["event", str(name), list(fields)] if name in _EVENTS:
                fields = [tuple(value) if isinstance(value, list) else value for value in fields]
                self._put(_EVENTS[name](*fields))
            case ["bound", list(addresses)]:
                # A restarted process takes the same ports, or the peers that know us could not come back.
                self._listen = tuple(addresses)
            case ["fatal", str(kind), str(text)] if kind in ERRORS:
                self._supervisor.fatal = ERRORS[kind](text)
            case _:
                raise PipeError(f"unknown message {message[:1]!r}")

    def _put(self, event: NetEvent) -> None:
        if isinstance(event, Listening):
            self.addresses = event.addresses
            self._supervisor.has_listened = True
            self._up.set()
        if self._events.qsize() >= MAX_EVENTS:
            if isinstance(event, Gossip):
                self.dropped_events += 1
                return
            if self._events.qsize() >= 2 * MAX_EVENTS:
                self._events.get_nowait()
                self.dropped_events += 1
        self._events.put_nowait(event)


def _check_peers(*peers: bytes) -> None:
    for peer in peers:
        if len(peer) != ID_BYTES:
            raise ValueError(f"a peer is an Ed25519 key of {ID_BYTES} bytes, this has {len(peer)}")


@asynccontextmanager
async def open_net(config: NetConfig) -> AsyncIterator[Net]:
    """A node on the network, listening, until the block ends.

    Raises:
        ConfigError: an address cannot be parsed or listened on.
        Unreachable: the network process does not start.
    """
    if len(config.identity_seed) != 32:
        raise ConfigError(f"the identity seed has {len(config.identity_seed)} bytes, 32 are needed")
    net = Net(config)
    await net._start()
    try:
        yield net
    finally:
        await net.close()
