"""One libp2p host: TCP, Noise, yamux, Ed25519 and nothing else, with every guard in place."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.identity.identify_push.identify_push import ID_PUSH
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.tools.anyio_service import background_trio_service
from libp2p.transport.tcp.tcp import TCP
from libp2p.utils.address_validation import expand_wildcard_address
from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from sterna.errors import ConfigError
from sterna.net.containment import Blame, contain, guard_streams
from sterna.net.hardened_connections import (
    UPGRADE_SECONDS,
    BoundedYamux,
    Ed25519Noise,
    dial_nobody,
    free_inbound_slots,
)
from sterna.net.hardening import install
from sterna.net.peer_ids import id_of, key_of
from sterna.net.score import Offence
from sterna.net.streams import CLOSE_SECONDS, Lost, Misbehaved, Stream, farewell

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 128
"""Of all peers together: a committee of 32, its neighbours, and room for those who only pull."""

MAX_INBOUND = 96
"""The rest stays free for peers that we dial, so strangers cannot shut us in."""

CONNECTIONS_PER_PEER = 2
"""Two peers that dial each other at the same moment get two."""

DIAL_SECONDS = 10.0

TRANSPORT_ERRORS = (
    BaseLibp2pError,
    EOFError,
    OSError,
    ValueError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    trio.EndOfChannel,
)
"""What the library raises for a connection or stream that is gone."""


class Libp2pStream:
    """The library's stream behind our protocol: its many errors become ``Lost``."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def read(self, size: int) -> bytes:
        try:
            data = await self._stream.read(size)
        except StreamEOF as end:
            raise Lost("the peer closed the stream") from end
        except TRANSPORT_ERRORS as error:
            raise Lost(f"read: {type(error).__name__}") from error
        if not data:
            raise Lost("the peer closed the stream")
        return bytes(data)

    async def write(self, data: bytes) -> None:
        try:
            await self._stream.write(data)
        except TRANSPORT_ERRORS as error:
            raise Lost(f"write: {type(error).__name__}") from error

    async def close(self) -> None:
        with suppress(*TRANSPORT_ERRORS), farewell():
            await self._stream.close()

    async def reset(self) -> None:
        with suppress(*TRANSPORT_ERRORS), farewell():
            await self._stream.reset()


class Host:
    """What our protocols need of libp2p, with raw keys for peers and strings for addresses."""

    def __init__(self, libp2p: Any, blame: Callable[[bytes, Offence, str], None]) -> None:
        self.libp2p = libp2p
        self.swarm = libp2p.get_network()
        self._blame = blame

    @property
    def bound(self) -> tuple[str, ...]:
        """What we listen on, with the ports the system chose."""
        return tuple(str(address) for address in self.libp2p.get_transport_addrs())

    @property
    def addresses(self) -> tuple[str, ...]:
        """Full multiaddrs others can dial."""
        return tuple(str(address) for address in self.libp2p.get_addrs())

    @property
    def peer(self) -> bytes:
        """Our own key."""
        return key_of(self.libp2p.get_id())

    def known_addresses(self, peer: bytes) -> list[str]:
        """Where a peer says it listens."""
        suffix = f"/p2p/{id_of(peer)}"
        try:
            addresses = [str(address) for address in self.libp2p.get_peerstore().addrs(id_of(peer))]
        except PeerStoreError:
            return []
        return list(dict.fromkeys(a if a.endswith(suffix) else a + suffix for a in addresses))

    def remote_address(self, peer: bytes) -> str:
        """The other end of a connection to a peer, as a multiaddr; empty if there is none."""
        connections = self.swarm.get_connections(id_of(peer))
        return _address_of(connections[0]) if connections else ""

    def peers(self) -> list[bytes]:
        """Connected peers."""
        return [key_of(peer_id) for peer_id, connections in self.swarm.connections.items() if connections]

    def is_connected(self, peer: bytes) -> bool:
        return bool(self.swarm.get_connections(id_of(peer)))

    async def open(self, peer: bytes, protocol: str) -> Stream:
        """A new stream to a connected peer.

        Raises:
            Lost: not connected, or the peer does not speak the protocol.
        """
        if not self.is_connected(peer):
            raise Lost(f"not connected to {peer[:4].hex()}")
        try:
            with trio.move_on_after(DIAL_SECONDS):
                return Libp2pStream(await self.libp2p.new_stream(id_of(peer), [TProtocol(protocol)]))
        except TRANSPORT_ERRORS as error:
            raise Lost(f"no {protocol} stream to {peer[:4].hex()}: {error}") from error
        raise Lost(f"no {protocol} stream to {peer[:4].hex()} within {DIAL_SECONDS:g} s")

    def handle(self, protocol: str, serve: Callable[[bytes, Stream], Awaitable[None]]) -> None:
        """Let ``serve(peer, stream)`` answer this protocol; the stream is closed or reset after it."""

        async def handler(raw: Any) -> None:
            peer = key_of(raw.muxed_conn.peer_id)
            stream = Libp2pStream(raw)
            try:
                await serve(peer, stream)
            except Lost:
                await stream.reset()
            except Misbehaved as offence:
                self._blame(peer, Offence.MALFORMED, f"{protocol}: {offence}")
                await stream.reset()

        self.libp2p.set_stream_handler(TProtocol(protocol), handler)

    async def dial(self, address: str) -> bytes:
        """Connect to exactly this address; the peer's key.

        ``host.connect`` would try one address of its own choice and then wait out a quarter of a second
        (network/swarm.py:936); this does neither.

        Raises:
            ValueError: not a full TCP multiaddr of an Ed25519 peer.
            Lost: nobody there, or somebody else.
        """
        peer, where = parse_address(address)
        if self.is_connected(peer):
            return peer
        try:
            with trio.move_on_after(DIAL_SECONDS):
                await self.swarm.dial_addr(where, id_of(peer))
                return peer
        except TRANSPORT_ERRORS as error:
            raise Lost(f"{address}: {error}") from error
        raise Lost(f"{address}: no answer within {DIAL_SECONDS:g} s")

    async def drop(self, peer: bytes) -> None:
        """Close all connections to a peer, politely if it lets us."""
        connections = list(self.swarm.get_connections(id_of(peer)))
        for connection in connections:
            with trio.move_on_after(CLOSE_SECONDS) as polite, suppress(*TRANSPORT_ERRORS):
                await connection.close()
            if polite.cancelled_caught:
                # The peer reads nothing, so the farewell cannot be written: closing the socket wakes
                # everybody.
                with farewell(), suppress(*TRANSPORT_ERRORS):
                    await connection.muxed_conn.secured_conn.close()

    def on_change(
        self,
        connected: Callable[[bytes, str], Awaitable[None]],
        disconnected: Callable[[bytes], Awaitable[None]],
    ) -> None:
        """Call back with the first connection of a peer and with the end of the last one."""
        self.swarm.register_notifee(_Notifee(self, connected, disconnected))


def parse_address(address: str) -> tuple[bytes, Multiaddr]:
    """Peer key and transport address of a full multiaddr.

    Raises:
        ValueError: not ``/<ip or dns>/.../tcp/.../p2p/<Ed25519 PeerID>``.
    """
    try:
        whole = Multiaddr(address)
        names = [protocol.name for protocol in whole.protocols()]
        if names[-1:] != ["p2p"] or "tcp" not in names:
            raise ValueError(f"{address!r} does not end in /tcp/<port>/p2p/<PeerID>")
        name = whole.value_for_protocol("p2p")
        return key_of(ID.from_string(str(name))), whole.decapsulate(Multiaddr(f"/p2p/{name}"))
    except (MultiaddrError, ValueError, KeyError, LookupError) as error:
        raise ValueError(f"{address!r} is not an address of a peer: {error}") from error


@asynccontextmanager
async def open_host(
    *,
    seed: bytes,
    listen: Sequence[str],
    network_key: bytes = b"",
    admit: Callable[[bytes], bool],
    blame: Callable[[bytes, Offence, str], None],
) -> AsyncIterator[Host]:
    """A running host that listens on ``listen``.

    With a ``network_key`` of 32 bytes every connection is encrypted under it from the first byte on, below
    Noise: whoever lacks the key cannot even begin the handshake.

    Raises:
        ConfigError: an address cannot be parsed or listened on.
    """
    install()
    key_pair = create_new_key_pair(seed)
    try:
        addresses = [Multiaddr(address) for address in listen]
    except (MultiaddrError, ValueError) as error:
        raise ConfigError(f"listen addresses {list(listen)}: {error}") from error
    libp2p: Any = new_host(
        key_pair=key_pair,
        psk=network_key.hex() or None,
        sec_opt={NOISE: Ed25519Noise(key_pair, admit)},
        muxer_opt={TProtocol(YAMUX): BoundedYamux},
        transports=[TCP()],
        connection_config=ConnectionConfig(
            max_connections=MAX_CONNECTIONS,
            min_connections=0,
            low_watermark=0,
            high_watermark=MAX_CONNECTIONS,
            max_connections_per_peer=CONNECTIONS_PER_PEER,
            inbound_upgrade_timeout=UPGRADE_SECONDS,
            outbound_upgrade_timeout=UPGRADE_SECONDS,
        ),
        addrs_factory=_concrete,
        disable_identify_address_discovery=True,
    )
    swarm = libp2p.get_network()
    swarm.retry_config = RetryConfig(max_retries=0)
    # Its limits are per connection attempt and per process; one stranger can use them up for everybody.
    # Ours are per peer and per address.
    swarm.set_resource_manager(None)
    swarm._inbound_limiter.total_tokens = MAX_INBOUND
    # Anyone could rewrite the addresses we hold for it at any time; the answer to our own question is enough.
    libp2p.remove_stream_handler(ID_PUSH)

    guard_streams(libp2p, blame_by_id(blame))
    free_inbound_slots(swarm)
    dial_nobody(swarm)
    async with background_trio_service(swarm) as manager:
        contain(manager, "swarm")
        for address in addresses:
            _require_free(address)
        await swarm.listen(*addresses)
        if len(swarm.listeners) < len(addresses):
            failed = [str(address) for address in addresses if str(address) not in swarm.listeners]
            raise ConfigError(f"cannot listen on {', '.join(failed)}: is it our address, is the port free?")
        yield Host(libp2p, blame)


def _require_free(address: Multiaddr) -> None:
    """py-libp2p shares a port with whoever listens on it already, and each then gets half of the connections.

    Raises:
        ConfigError: somebody listens there.
    """
    parts = str(address).split("/")
    if len(parts) < 5 or parts[3] != "tcp" or parts[4] == "0":
        return
    family = socket.AF_INET6 if parts[1] == "ip6" else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # A port whose last connections are still fading away is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((parts[2], int(parts[4])))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {address}: {error.strerror}; is it our address, is the port free?"
            ) from error


def _concrete(addresses: Sequence[Multiaddr]) -> list[Multiaddr]:
    # A wildcard is nothing that others could dial: name the interfaces, those that others reach first.
    named: list[Multiaddr] = []
    for address in addresses:
        if "/ip4/0.0.0.0/" in str(address) or "/ip6/::/" in str(address):
            named.extend(expand_wildcard_address(address))
        else:
            named.append(address)
    return sorted(dict.fromkeys(named), key=lambda a: "/ip4/127." in str(a) or "/ip6/::1/" in str(a))


def blame_by_id(blame: Callable[[bytes, Offence, str], None]) -> Blame:
    """The same, for the parts that know a peer by its libp2p id."""

    def by_id(peer_id: ID, offence: Offence, why: str) -> None:
        with suppress(ValueError):
            blame(key_of(peer_id), offence, why)

    return by_id


class _Notifee:
    """libp2p's INotifee, by shape."""

    def __init__(
        self,
        host: Host,
        connected: Callable[[bytes, str], Awaitable[None]],
        disconnected: Callable[[bytes], Awaitable[None]],
    ) -> None:
        self._host = host
        self._connected = connected
        self._disconnected = disconnected
        self._known: set[bytes] = set()

    async def connected(self, _network: Any, connection: Any) -> None:
        peer = key_of(connection.muxed_conn.peer_id)
        if peer not in self._known:
            self._known.add(peer)
            await self._connected(peer, _address_of(connection))

    async def disconnected(self, _network: Any, connection: Any) -> None:
        peer = key_of(connection.muxed_conn.peer_id)
        if getattr(connection.muxed_conn, "broke_window", False):
            self._host._blame(peer, Offence.LIED, "sent past its window")
        if peer in self._known and not self._host.is_connected(peer):
            self._known.discard(peer)
            await self._disconnected(peer)

    async def opened_stream(self, _network: Any, _stream: Any) -> None: ...

    async def closed_stream(self, _network: Any, _stream: Any) -> None: ...

    async def listen(self, _network: Any, _address: Any) -> None: ...

    async def listen_close(self, _network: Any, _address: Any) -> None: ...


def _address_of(connection: Any) -> str:
    remote = connection.muxed_conn.get_remote_address()
    if remote is None:
        return ""
    host, port = remote
    return f"/{'ip6' if ':' in host else 'ip4'}/{host}/tcp/{port}"
