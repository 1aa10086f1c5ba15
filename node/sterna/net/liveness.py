"""Knowing which connections live, and bringing back those we want.

TCP notices a cut cable after minutes and the library's own ping has no consequence (yamux.py:720), so each
peer is pinged and a silent one is disconnected: after a partition that is what makes gossip whole again
within seconds.
"""

from __future__ import annotations

import logging
import random
import secrets
from collections.abc import Iterable

import trio

from sterna.net.host import Host, parse_address
from sterna.net.streams import Lost, Stream, read_exactly, write_all

logger = logging.getLogger(__name__)

PING_PROTOCOL = "/ipfs/ping/1.0.0"
PING_BYTES = 32
PING_EVERY_SECONDS = 5.0
"""The library's answering side gives up after 10 s without a ping."""

PING_TIMEOUT_SECONDS = 4.0
MISSES = 2
"""Silent pings in a row until the connection is closed: one may be a busy machine."""

FIRST_REDIAL_SECONDS = 1.0
LAST_REDIAL_SECONDS = 60.0
FORGET_SECONDS = 3600.0
"""A peer that is no bootstrap and stays away this long is no longer dialled."""

MAX_WANTED = 256
"""Addresses that are dialled again when their connection is gone."""


async def keep_alive(host: Host, peer: bytes) -> None:
    """Ping one peer until it is gone; close its connections if it does not answer."""
    misses = 0
    stream: Stream | None = None
    try:
        while host.is_connected(peer):
            try:
                with trio.move_on_after(PING_TIMEOUT_SECONDS) as deadline:
                    stream = stream or await host.open(peer, PING_PROTOCOL)
                    await _ping(stream)
                if deadline.cancelled_caught:
                    raise Lost(f"no echo within {PING_TIMEOUT_SECONDS:g} s")
            except Lost as why:
                misses += 1
                if stream is not None:
                    await stream.reset()
                    stream = None
                if misses >= MISSES:
                    logger.info("peer.silent", extra={"peer": peer[:4].hex(), "why": str(why)})
                    await host.drop(peer)
                    return
                continue
            misses = 0
            await trio.sleep(PING_EVERY_SECONDS)
    finally:
        if stream is not None:
            await stream.reset()


async def _ping(stream: Stream) -> None:
    token = secrets.token_bytes(PING_BYTES)
    await write_all(stream, token, seconds=PING_TIMEOUT_SECONDS)
    if await read_exactly(stream, PING_BYTES, seconds=PING_TIMEOUT_SECONDS) != token:
        raise Lost("the echo differs")


class Redialler:
    """Keeps connections to the addresses we want, each with its own patience."""

    def __init__(self, host: Host, nursery: trio.Nursery) -> None:
        self._host = host
        self._nursery = nursery
        self._wanted: dict[str, bytes] = {}
        self._gone = trio.Event()

    def want(self, addresses: Iterable[str], *, for_ever: bool) -> None:
        """Dial these addresses now and whenever their peer is not connected.

        Raises:
            ValueError: an address is not a full multiaddr.
        """
        for address in addresses:
            peer, _ = parse_address(address)
            if address not in self._wanted and len(self._wanted) < MAX_WANTED:
                self._wanted[address] = peer
                self._nursery.start_soon(self._keep, address, peer, for_ever)

    def lost(self) -> None:
        """A connection is gone: whoever waits for that looks again."""
        self._gone.set()
        self._gone = trio.Event()

    async def _keep(self, address: str, peer: bytes, for_ever: bool) -> None:
        delay = FIRST_REDIAL_SECONDS
        since = trio.current_time()
        while for_ever or trio.current_time() - since < FORGET_SECONDS:
            if self._host.is_connected(peer):
                await self._gone.wait()
                delay, since = FIRST_REDIAL_SECONDS, trio.current_time()
                continue
            try:
                await self._host.dial(address)
            except Lost as why:
                logger.debug("dial.failed", extra={"address": address, "why": str(why)})
                # Half of the delay is random, so a swarm that lost one peer does not come back all at once.
                await trio.sleep(delay * random.uniform(0.5, 1.0))
                delay = min(2 * delay, LAST_REDIAL_SECONDS)
        del self._wanted[address]
