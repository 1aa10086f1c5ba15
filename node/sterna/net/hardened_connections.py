"""Connections that hold a bounded number of bytes and streams, with peers that proved who they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as new_noise_key
from libp2p.exceptions import ParseError
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.security.exceptions import HandshakeFailure
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream
from libp2p.utils.varint import read_varint_prefixed_bytes_limited

from sterna.net.peer_ids import key_of

MAX_NEGOTIATION_LINE_BYTES = 1024
"""One multistream-select line; our longest protocol id has 22 bytes, and "ls" answers stay below this."""

MAX_WINDOW_BYTES = 1024 * 1024
"""Unread bytes a peer may have in one stream. 1 MiB at 50 ms is 20 MB/s, as much as the library can move."""

MAX_BUFFERED_BYTES = 8 * 1024 * 1024
"""Unread bytes on all streams of one connection: a pipeline of chunks and several full sync responses."""

MAX_INBOUND_STREAMS = 32
"""Open streams a peer may have started on one connection: gossip, ping, identify, chunks, and some of
sync."""

FRAME_WRITE_SECONDS = 20.0
"""Longest time for one 64 KiB frame to leave: 3 KiB/s. Slower is a peer that does not read."""

UPGRADE_SECONDS = 10.0
"""From an accepted socket to an authenticated peer."""

MAX_UPGRADES_PER_ADDRESS = 32
"""Sockets of one IP address that have not proved who they are; the rest of a flood is closed at once."""


class Ed25519Noise(NoiseTransport):  # type: ignore[misc]
    """Noise that admits Ed25519 peers only, and of those only the ones ``admit`` allows.

    Cures: the default set of security protocols offers /plaintext/2.0.0, which believes any PeerID
    (``libp2p/__init__.py:661``); an id of another key type would not be a key at our API; and a banned peer
    would get as far as a connection.
    """

    def __init__(self, key_pair: KeyPair, admit: Callable[[bytes], bool]) -> None:
        super().__init__(key_pair, noise_privkey=new_noise_key().private_key)
        self._admit = admit

    async def secure_inbound(self, conn: Any) -> Any:
        return await self._checked(await super().secure_inbound(conn))

    async def secure_outbound(self, conn: Any, peer_id: ID) -> Any:
        return await self._checked(await super().secure_outbound(conn, peer_id))

    async def _checked(self, session: Any) -> Any:
        try:
            key = key_of(session.get_remote_peer())
        except ValueError as refused:
            await session.close()
            raise HandshakeFailure(str(refused)) from refused
        if not self._admit(key):
            await session.close()
            raise HandshakeFailure(f"peer {key[:4].hex()} is banned")
        return session


class WindowExceeded(trio.TooSlowError):
    """A peer sent more than its window.

    Of the class that ``Yamux.handle_incoming`` answers by closing the connection (yamux.py:1640); any other
    exception there is logged and the loop goes on.
    """


class StrictStream(YamuxStream):  # type: ignore[misc]
    """Ends the connection of a peer that sends past the receive window.

    Cures: the excess is kept and only logged (yamux.py:1319, :1405, :1493), so a stream that nobody reads
    grows without bound; and the window itself grows to 16 MiB per stream.
    """

    @property
    def recv_window(self) -> int:
        return self._recv_window

    @recv_window.setter
    def recv_window(self, value: int) -> None:
        if value < 0:
            self.conn.broke_window = True
            raise WindowExceeded(f"{-value} bytes past the window of stream {self.stream_id}")
        self._recv_window = value

    def _apply_autotune_epoch(self, buffered: int) -> int:
        if self.target_recv_window >= MAX_WINDOW_BYTES:
            return 0
        return int(super()._apply_autotune_epoch(buffered))


class BoundedYamux(Yamux):  # type: ignore[misc]
    """A yamux connection that cannot be made to hold more than a bounded number of bytes and streams.

    Cures: the sum over many streams is not bounded; nor is the number of streams a peer may open (one task
    each); a write to a peer that does not read blocks for ever and with it ``close``; and a write cancelled
    half-way leaves half a frame on the wire.
    """

    broke_window = False

    async def _read_data_body(self, length: int) -> bytes:
        buffered = sum(map(len, self.stream_buffers.values()))
        if buffered + length > MAX_BUFFERED_BYTES:
            self.broke_window = True
            raise WindowExceeded(f"{buffered + length} unread bytes on one connection")
        return bytes(await super()._read_data_body(length))

    async def accept_stream(self) -> Any:
        while True:
            stream = await super().accept_stream()
            inbound = sum(1 for s in self.streams.values() if not s.is_initiator)
            if inbound <= MAX_INBOUND_STREAMS:
                return stream
            await stream.reset()

    async def _write_frame(self, data: bytes) -> None:
        async with self._write_lock:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + FRAME_WRITE_SECONDS) as scope:
                await self.secured_conn.write(data)
            if scope.cancelled_caught:
                self.event_shutting_down.set()
                await self.secured_conn.close()
                raise ConnectionClosedError(f"{len(data)} bytes not written in {FRAME_WRITE_SECONDS:g} s")
        await trio.lowlevel.checkpoint()


def free_inbound_slots(swarm: Any) -> None:
    """End the accept handler with its connection, and refuse a flood of silent sockets.

    Cures: the handler parks until shutdown (network/swarm.py:2044, :2060), so every connection ever accepted
    keeps one of ``max_connections`` slots; and one address can hold all slots with sockets that say nothing.
    """
    upgrade = swarm.upgrade_inbound_raw_conn
    upgrading: dict[str, int] = {}

    async def guarded(raw: Any, address: Any) -> Any:
        remote = raw.get_remote_address()
        host = remote[0] if remote else ""
        if upgrading.get(host, 0) >= MAX_UPGRADES_PER_ADDRESS:
            raise SwarmException(f"{host} has {MAX_UPGRADES_PER_ADDRESS} sockets in handshake")
        upgrading[host] = upgrading.get(host, 0) + 1
        try:
            connection = await upgrade(raw, address)
        finally:
            upgrading[host] -= 1
            if not upgrading[host]:
                del upgrading[host]
        await connection.event_closed.wait()
        # The caller logs this at debug level, closes the socket and gives the slot back.
        raise SwarmException("the connection is closed")

    swarm.upgrade_inbound_raw_conn = guarded


def dial_nobody(swarm: Any) -> None:
    """Cures: below a target of its own choice (64 here, with every watermark at zero) the library dials
    whoever is in its peerstore, which is whoever ever spoke to us (network/auto_connector.py:262)."""

    async def no_dials() -> None: ...

    swarm.auto_connector.maybe_connect = no_dials


async def bounded_read_delim(reader: Any) -> bytes:
    """Cures: a length of 2^28 in an unauthenticated multistream line allocates that much
    (utils/varint.py:153), and a line that is not UTF-8 raises out of the connection
    (multiselect_communicator.py:58)."""
    line = await read_varint_prefixed_bytes_limited(reader, MAX_NEGOTIATION_LINE_BYTES)
    if not line.endswith(b"\n"):
        raise ParseError(f"a line of {len(line)} bytes without an end")
    try:
        line.decode()
    except UnicodeDecodeError as broken:
        raise ParseError(f"a line of {len(line)} bytes that is not UTF-8") from broken
    return bytes(line[:-1])
