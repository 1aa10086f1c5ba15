"""Who listens where: answers charter and address requests, and finds peers through peers."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from sterna.errors import Unreachable
from sterna.swarm.ports import Network
from sterna_protocol.errors import RemoteProtocolError
from sterna_protocol.swarm.directory import (
    AddressesRequest,
    CharterRequest,
    DirectoryKind,
    decode_addresses,
    encode_addresses,
    encode_addresses_request,
)
from sterna_protocol.wire.ids import short
from sterna_protocol.wire.limits import MAX_COMMITTEE

logger = logging.getLogger(__name__)

ASK_INTERVAL_SECONDS = 5.0
"""Between two address requests to a random peer; a newcomer knows the swarm within a few of them."""

WANTED_PEERS = MAX_COMMITTEE
"""Peers to stay connected with: a whole committee, so that deciding needs no relaying."""

MAX_KNOWN = 512
"""Peers remembered; addresses come from strangers and must not grow without bound."""


class Directory:
    """The addresses one node knows, and the charter it hands out.

    Args:
        dial: connects to a multiaddr and returns the peer id; raises ``Unreachable``.
        own_addresses: where this node listens now.
    """

    def __init__(
        self,
        *,
        swarm: bytes,
        me: bytes,
        signed_charter: bytes,
        network: Network,
        dial: Callable[[str], Coroutine[Any, Any, bytes]],
        rng: random.Random,
        own_addresses: Callable[[], tuple[str, ...]],
    ) -> None:
        self._swarm = swarm
        self._me = me
        self._signed_charter = signed_charter
        self._network = network
        self._dial = dial
        self._rng = rng
        self._own_addresses = own_addresses
        self._known: dict[bytes, tuple[str, ...]] = {}
        self._news: asyncio.Queue[tuple[bytes, tuple[str, ...]]] = asyncio.Queue(MAX_KNOWN)

    def answer(self, peer: bytes, data: bytes) -> bytes:
        """The response to a directory request.

        Raises:
            MalformedMessage: not a directory request.
        """
        if data[0] == DirectoryKind.CHARTER_REQUEST:
            asked = CharterRequest.decode(data[1:]).swarm
            return self._signed_charter if asked == self._swarm else b""
        request = AddressesRequest.decode(data[1:])
        if request.swarm != self._swarm:
            return encode_addresses({})
        if request.own:
            self._remember(peer, request.own)
        return encode_addresses({**self._known, self._me: self._own_addresses()})

    async def learned(self) -> AsyncIterator[tuple[bytes, tuple[str, ...]]]:
        """Peers and their addresses as they become known; never ends by itself."""
        while True:
            yield await self._news.get()

    async def keep_connected(self, connected: Callable[[], frozenset[bytes]]) -> None:
        """Learn addresses from random peers and dial who is missing, until cancelled."""
        while True:
            await asyncio.sleep(ASK_INTERVAL_SECONDS * (0.5 + self._rng.random()))
            now_connected = connected()
            if not now_connected:
                continue
            await self._ask(self._rng.choice(sorted(now_connected)))
            missing = [peer for peer in self._known if peer not in connected()]
            if len(now_connected) < WANTED_PEERS and missing:
                await self._connect(self._rng.choice(missing))

    async def _ask(self, peer: bytes) -> None:
        request = encode_addresses_request(self._swarm, self._own_addresses())
        try:
            entries = decode_addresses(await self._network.request(peer, request, timeout=10.0))
        except (Unreachable, RemoteProtocolError) as failed:
            logger.debug("addresses.failed", extra={"peer": short(peer), "why": str(failed)})
            return
        for other, addresses in entries.items():
            self._remember(other, addresses)

    def _remember(self, peer: bytes, addresses: tuple[str, ...]) -> None:
        if peer == self._me or self._known.get(peer) == addresses:
            return
        if peer not in self._known and len(self._known) >= MAX_KNOWN:
            self._known.pop(next(iter(self._known)))
        self._known[peer] = addresses
        if not self._news.full():
            self._news.put_nowait((peer, addresses))

    async def _connect(self, peer: bytes) -> None:
        for address in self._known[peer]:
            try:
                await self._dial(address)
                return
            except Unreachable as failed:
                logger.debug("dial.failed", extra={"peer": short(peer), "why": str(failed)})
