"""What py-libp2p 0.8.1 does to itself on hostile input, and the guard for each.

Every guard names the fault it cures with the place in the library's source; tests/fuzz runs the attacks.
None of them changes what a correct peer sees. The library is pinned, so a new version means reading this
file again.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import trio
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as new_noise_key
from libp2p.exceptions import ParseError, ValidationError
from libp2p.io.exceptions import ConnectionClosedError, IOException, MsgioException
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.peer.peerstore import env_to_send_in_RPC
from libp2p.protocol_muxer import multiselect_communicator
from libp2p.pubsub import gossipsub, pubsub
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.security.exceptions import HandshakeFailure
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer import muxer_multistream
from libp2p.stream_muxer.exceptions import MuxedConnError, MuxedStreamError
from libp2p.stream_muxer.yamux import yamux
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream
from libp2p.utils.varint import read_varint_prefixed_bytes_limited

from sterna.net.score import Offence

logger = logging.getLogger(__name__)

Blame = Callable[[ID, Offence, str], None]
"""Told who did what; must not raise."""

PEER_ID_PREFIX = bytes.fromhex("002408011220")
"""Identity multihash of an Ed25519 key: what stands before the 32 key bytes in a PeerID."""

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

MAX_OUTBOUND_MESSAGES = 256
"""Gossip messages that wait for one peer: at 16 KiB each, 4 MiB. The library's 32 overflow in any burst."""

SENDER_RECORD_SECONDS = 60.0
"""A laptop that changes its network is known by its new addresses after this."""

MAX_OUTBOUND_RPC_BYTES = 64 * 1024
"""One gossip frame we send: several messages, and below what any peer accepts."""


def key_of(peer_id: ID) -> bytes:
    """The raw Ed25519 key in a PeerID.

    Raises:
        ValueError: another kind of key, or a hash of one.
    """
    raw = bytes(peer_id.to_bytes())
    if len(raw) != len(PEER_ID_PREFIX) + 32 or not raw.startswith(PEER_ID_PREFIX):
        raise ValueError(f"peer id {raw[:8].hex()}... ({len(raw)} bytes) is not an Ed25519 key")
    return raw[len(PEER_ID_PREFIX) :]


def id_of(key: bytes) -> ID:
    return ID(PEER_ID_PREFIX + key)


# --- connections --------------------------------------------------------------------------------------------


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


async def _bounded_read_delim(reader: Any) -> bytes:
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


def _sender_record(host: Any) -> tuple[bytes, bool]:
    made, record = getattr(host, "_sender_record", (float("-inf"), b""))
    now = trio.current_time()
    if now - made > SENDER_RECORD_SECONDS:
        record, _ = env_to_send_in_RPC(host)
        host._sender_record = (now, record)
    return record, False


def _ignore_sender_record(_rpc: Any, _host: Any, _peer_id: ID) -> bool:
    return True


def _never() -> bool:
    return False


def install() -> None:
    """Replace names that the library looks up in its own modules; affects this whole process.

    The muxer that a host is given is negotiated but not used: muxer_multistream.py:143 makes its own Yamux.
    Each gossip frame carries its sender's signed addresses, made up afresh for each (gossipsub.py:1007) and
    checked on each (pubsub.py:567): half of the time that gossip takes. Identify carries the same record.
    And every read, of one byte too, is answered with a window update of its own (yamux.py:413); without that,
    half a window is given back at once, as other implementations do.
    """
    multiselect_communicator.read_delim = _bounded_read_delim
    yamux.YamuxStream = StrictStream
    yamux._yamux_release_on_read = _never
    muxer_multistream.Yamux = BoundedYamux
    for module in (pubsub, gossipsub):
        module.env_to_send_in_RPC = _sender_record
        module.maybe_consume_signed_record = _ignore_sender_record


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


# --- tasks and handlers -------------------------------------------------------------------------------------


def contain(manager: Any, service: str) -> None:
    """A task of this service that raises is logged instead of ending the whole service.

    Cures: tools/anyio_service/trio_manager.py:385 cancels the service, which ends the process, for any
    exception in any task, among them tasks that work on one message of one peer.
    """
    run_task = manager.run_task

    def guarded_run_task(
        fn: Any, *args: Any, daemon: bool = False, name: str | None = None, _internal: bool = False
    ) -> None:
        if daemon or _internal:
            run_task(fn, *args, daemon=daemon, name=name, _internal=_internal)
            return

        async def contained(*inner: Any) -> None:
            try:
                await fn(*inner)
            except Exception as error:  # noqa: BLE001  the border between a peer's bytes and our process
                note(f"{service}.{getattr(fn, '__name__', 'task')}", error)

        run_task(contained, *args, name=name or getattr(fn, "__name__", None))

    manager.run_task = guarded_run_task


def guard_streams(host: Any, blame: Blame) -> None:
    """A stream handler that raises resets its stream, and every handled stream is closed on our side.

    Cures: handlers share the connection's nursery (swarm_connection.py:271) and only MultiselectError is
    caught (basic_host.py:1530), so one exception ends the process; and the gossip handler forgets to close
    its stream.
    """
    handle = host._swarm_stream_handler

    async def guarded(stream: Any) -> None:
        try:
            await handle(stream)
            await stream.close()
        except Exception as error:  # noqa: BLE001  the border between a peer's bytes and our process
            note("stream", error)
            if not _is_loss(error):
                blame(stream.muxed_conn.peer_id, Offence.RUDE, "stream")
            await stream.reset()

    host.get_network().set_stream_handler(guarded)


# --- gossip -------------------------------------------------------------------------------------------------


class SafePubsub(Pubsub):  # type: ignore[misc]
    """Gossip that survives what peers send and does not drop what we send.

    Cures: an undecodable RPC (pubsub.py:562), a key that is none (validators.py:63) and a validator that
    raises each end the process; the subscription's channel drops what exceeds 32 messages in one turn of the
    scheduler (pubsub.py:124); and outbound queues of 32 messages (rpc_queue.py:39) which may be joined to
    frames larger than the receivers' own limit.
    """

    def __init__(
        self,
        host: Any,
        router: GossipSub,
        *,
        blame: Blame,
        within_budget: Callable[[ID], bool],
        deliver: Callable[[Any], None],
        limits: dict[str, Any],
    ) -> None:
        super().__init__(host, router, strict_signing=True, **limits)
        self._blame = blame
        self._within_budget = within_budget
        self._deliver = deliver
        self.peer_queues = _DeepQueues()

    async def stream_handler(self, stream: Any) -> None:
        peer_id = stream.muxed_conn.peer_id
        try:
            await super().stream_handler(_Buffered(stream))
        except Exception as error:  # noqa: BLE001  protobuf's DecodeError, and what its parts' handlers raise
            note("gossip.stream", error)
            if not _is_loss(error):
                self._blame(peer_id, Offence.MALFORMED, "gossip frame")
            await stream.reset()
            self._handle_dead_peer(peer_id)

    async def validate_msg(self, msg_forwarder: ID, msg: Any) -> None:
        try:
            await super().validate_msg(msg_forwarder, msg)
        except ValidationError:
            self._blame(msg_forwarder, Offence.MALFORMED, "gossip message")
            raise
        except Exception as error:
            note("gossip.validate", error)
            self._blame(msg_forwarder, Offence.MALFORMED, "gossip message")
            raise ValidationError(str(error)) from error

    async def push_msg(self, msg_forwarder: ID, msg: Any) -> None:
        if msg_forwarder == self.my_id:
            await super().push_msg(msg_forwarder, msg)
            return
        # Dropped without blame: an honest neighbour passes on what others flood. The core pulls what it
        # misses.
        if not self._within_budget(msg_forwarder):
            return
        try:
            await super().push_msg(msg_forwarder, msg)
        except Exception as error:  # noqa: BLE001  see the class
            note("gossip.push", error)
            self._blame(msg_forwarder, Offence.MALFORMED, "gossip message")

    def notify_subscriptions(self, publish_message: Any) -> None:
        self._deliver(publish_message)


class _Buffered:
    """A stream that is read in large pieces.

    Cures: the length of each gossip frame is read byte by byte (utils/varint.py:167), and every read takes
    three locks: a neighbour could bring 30 messages a second on a busy machine, and no more.
    """

    metric_send_channel = None

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._buffer = b""
        self.muxed_conn = stream.muxed_conn

    async def read(self, size: int) -> bytes:
        if not self._buffer:
            self._buffer = await self._stream.read(MAX_OUTBOUND_RPC_BYTES)
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    async def reset(self) -> None:
        await self._stream.reset()


class _DeepQueues(dict[ID, Any]):
    def __setitem__(self, peer_id: ID, queue: Any) -> None:
        queue.max_message_size = MAX_OUTBOUND_RPC_BYTES
        queue._queue.max_size = MAX_OUTBOUND_MESSAGES
        super().__setitem__(peer_id, queue)


class _ShortList(dict[str, Any]):
    def __missing__(self, topic: str) -> deque[float]:
        self[topic] = deque(maxlen=64)
        return self[topic]  # type: ignore[no-any-return]


def forget_deliveries(router: GossipSub) -> None:
    """Cures: one timestamp per message is kept for ever when adaptive gossip is off (gossipsub.py:1089)."""
    router.recent_message_deliveries = _ShortList()


# --- logging ------------------------------------------------------------------------------------------------


def note(where: str, error: BaseException) -> None:
    """Log what was contained: kind and place, never the peer's bytes."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{trace.tb_frame.f_code.co_name}:{trace.tb_lineno}" if trace is not None else "?"
    logger.info("error.contained", extra={"where": where, "error": type(error).__name__, "place": place})


def _is_loss(error: BaseException) -> bool:
    """True if the error says that a connection or stream went away, which honest peers do."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_loss, error.exceptions))
    if isinstance(error, MsgioException):
        return False
    return isinstance(
        error,
        IOException
        | MuxedStreamError
        | MuxedConnError
        | SwarmException
        | trio.TooSlowError
        | trio.BrokenResourceError
        | trio.ClosedResourceError
        | OSError,
    )
