"""Finding more peers through those we have (docs/spec/network.md, protocol /sterna/peers/1).

    response   count u8 | count times: length u16 | address      integers big-endian

What a peer says about others is hearsay: it is worth a dial, within the bounds below, and never stored.
"""

from __future__ import annotations

import ipaddress
import logging
import random
import struct
from enum import IntEnum

import trio

from sterna.net.host import Host, parse_address
from sterna.net.streams import Lost, Misbehaved, Stream, read_exactly, write_all

logger = logging.getLogger(__name__)

PROTOCOL = "/sterna/peers/1"

MAX_ADDRESSES = 16
"""In one answer: enough for a full mesh neighbourhood, and one small frame."""

MAX_ADDRESS_BYTES = 256

ENOUGH_PEERS = 8
"""Connections from which on we do not look for more: a gossip mesh wants 6, a download 8 sources."""

DIALS_PER_ANSWER = 4
"""A peer that names victims makes us send each of them one handshake, four at a time, no more."""

FIRST_SECONDS = 2.0
LAST_SECONDS = 30.0
"""Between two questions; doubled while nothing new comes of them."""

ANSWER_SECONDS = 10.0

_COUNT = struct.Struct(">B")
_LENGTH = struct.Struct(">H")


class Scope(IntEnum):
    """How far an address reaches."""

    NOWHERE = 0
    LOOPBACK = 1
    PRIVATE = 2
    PUBLIC = 3


def scope_of(address: str) -> Scope:
    """How far a multiaddr reaches; a name is taken for public."""
    _, kind, where, *_ = [*address.split("/"), "", "", ""]
    if kind in ("dns", "dns4", "dns6", "dnsaddr"):
        return Scope.PUBLIC
    try:
        ip = ipaddress.ip_address(where)
    except ValueError:
        return Scope.NOWHERE
    if ip.is_loopback:
        return Scope.LOOPBACK
    if ip.is_unspecified or ip.is_multicast or ip.is_reserved or ip.is_link_local:
        return Scope.NOWHERE
    return Scope.PRIVATE if ip.is_private else Scope.PUBLIC


def believable(addresses: list[str], informer: str) -> list[str]:
    """The addresses that an informer at this address may send us to: none nearer to us than itself.

    Otherwise anybody on the internet could make us knock at doors inside our own network.
    """
    reach = scope_of(informer)
    return [address for address in addresses if scope_of(address) >= reach > Scope.NOWHERE]


def encode(addresses: list[str]) -> bytes:
    """One answer; what does not fit is left out."""
    fitting = [a.encode() for a in addresses if len(a.encode()) <= MAX_ADDRESS_BYTES][:MAX_ADDRESSES]
    return _COUNT.pack(len(fitting)) + b"".join(_LENGTH.pack(len(a)) + a for a in fitting)


async def ask(stream: Stream) -> list[str]:
    """The addresses the other side offers, unchecked but for their form.

    Raises:
        Lost: no answer in time.
        Misbehaved: an answer that no correct peer gives.
    """
    (count,) = _COUNT.unpack(await read_exactly(stream, _COUNT.size, seconds=ANSWER_SECONDS))
    if count > MAX_ADDRESSES:
        raise Misbehaved(f"{count} addresses, the limit is {MAX_ADDRESSES}")
    addresses = []
    for _ in range(count):
        (length,) = _LENGTH.unpack(await read_exactly(stream, _LENGTH.size, seconds=ANSWER_SECONDS))
        if length > MAX_ADDRESS_BYTES:
            raise Misbehaved(f"an address of {length} bytes, the limit is {MAX_ADDRESS_BYTES}")
        try:
            address = (await read_exactly(stream, length, seconds=ANSWER_SECONDS)).decode("ascii")
            parse_address(address)
        except (UnicodeDecodeError, ValueError):
            # A peer of another version may know kinds of addresses that we do not.
            continue
        addresses.append(address)
    return addresses


class Discovery:
    """Answers the question who else is there, and asks it while we have few connections."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def serve(self, peer: bytes, stream: Stream) -> None:
        """Name some of our other peers.

        Raises:
            Lost: the stream broke.
        """
        others = [other for other in self._host.peers() if other != peer]
        random.shuffle(others)
        known = [self._host.known_addresses(other) for other in others[:MAX_ADDRESSES]]
        answer = encode([address for addresses in known for address in addresses[:2]])
        await write_all(stream, answer, seconds=ANSWER_SECONDS)

    async def run(self) -> None:
        """Look for peers as long as there are few."""
        pause = FIRST_SECONDS
        while True:
            await trio.sleep(pause * random.uniform(0.75, 1.25))
            before = self._host.peers()
            if 0 < len(before) < ENOUGH_PEERS:
                await self._look(random.choice(before))
            found = set(self._host.peers()) - set(before)
            pause = FIRST_SECONDS if found else min(2 * pause, LAST_SECONDS)

    async def _look(self, informer: bytes) -> None:
        try:
            stream = await self._host.open(informer, PROTOCOL)
            try:
                addresses = await ask(stream)
            finally:
                await stream.reset()
        except (Lost, Misbehaved) as why:
            logger.debug("discovery.failed", extra={"peer": informer[:4].hex(), "why": str(why)})
            return
        heard = believable(addresses, self._host.remote_address(informer))
        known = {self._host.peer, *self._host.peers()}
        strangers = [address for address in heard if parse_address(address)[0] not in known]
        random.shuffle(strangers)
        async with trio.open_nursery() as nursery:
            for address in strangers[:DIALS_PER_ANSWER]:
                nursery.start_soon(self._try, address)

    async def _try(self, address: str) -> None:
        try:
            await self._host.dial(address)
        except Lost as why:
            logger.debug("discovery.dead_address", extra={"address": address, "why": str(why)})
