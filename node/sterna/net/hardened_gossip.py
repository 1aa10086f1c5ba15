"""Gossip that survives what peers send, and sends no more than they can take."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import trio
from libp2p.exceptions import ValidationError
from libp2p.peer.id import ID
from libp2p.peer.peerstore import env_to_send_in_RPC
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub

from sterna.net.containment import Blame, is_loss, note
from sterna.net.score import Offence

MAX_OUTBOUND_MESSAGES = 256
"""Gossip messages that wait for one peer: at 16 KiB each, 4 MiB. The library's 32 overflow in any burst."""

SENDER_RECORD_SECONDS = 60.0
"""A laptop that changes its network is known by its new addresses after this."""

MAX_OUTBOUND_RPC_BYTES = 64 * 1024
"""One gossip frame we send: several messages, and below what any peer accepts."""


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
            if not is_loss(error):
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


def sender_record(host: Any) -> tuple[bytes, bool]:
    made, record = getattr(host, "_sender_record", (float("-inf"), b""))
    now = trio.current_time()
    if now - made > SENDER_RECORD_SECONDS:
        record, _ = env_to_send_in_RPC(host)
        host._sender_record = (now, record)
    return record, False


def ignore_sender_record(_rpc: Any, _host: Any, _peer_id: ID) -> bool:
    return True
