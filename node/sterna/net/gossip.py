"""Small signed messages to everybody: GossipSub with every parameter written down."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.score import ScoreParams, TopicScoreParams
from libp2p.tools.anyio_service import background_trio_service

from sterna.net.containment import contain
from sterna.net.hardened_gossip import SafePubsub, forget_deliveries
from sterna.net.host import MAX_CONNECTIONS, Host, blame_by_id
from sterna.net.pace import Budget, Pace
from sterna.net.peer_ids import id_of, key_of
from sterna.net.score import Offence
from sterna_protocol.wire.limits import MAX_FRAME_BYTES

logger = logging.getLogger(__name__)

PROTOCOLS = (TProtocol("/meshsub/1.1.0"),)
"""1.2 adds an IDONTWANT for every message, as costly as the message at our sizes; later ones are dialects."""

PUBLISH_GAP_SECONDS = 0.01
"""Between two messages of our own: a mesh neighbour handles about a hundred a second."""

MAX_INBOUND_RPC_BYTES = 128 * 1024
"""One frame of a peer: twice what we send ourselves."""

MESSAGES_PER_SECOND = 200.0
MESSAGE_BURST = 1000.0
"""From one neighbour. Every member of a committee votes a few times per attempt and all of it may come
through one neighbour; after a partition the last five heartbeats come at once."""

ROUTER = {
    "degree": 6,
    "degree_low": 4,
    "degree_high": 12,
    "time_to_live": 60,
    "gossip_window": 3,
    "gossip_history": 5,
    "heartbeat_initial_delay": 0.1,
    "heartbeat_interval": 1,  # the library's default is 120 s
    "do_px": False,
    "prune_back_off": 60,
    "unsubscribe_back_off": 10,
    "adaptive_gossip_enabled": False,
    # Drops silently and per forwarder, so neighbours come to disagree; the budget above replaces it.
    "spam_protection_enabled": False,
    "eclipse_protection_enabled": True,
    "max_pending_messages_per_peer": 32,
    "pending_messages_ttl": 10.0,
}
"""GossipSub's parameters, values of its specification where it gives one."""

PUBSUB = {
    "seen_ttl": 120,
    "max_subscriptions_per_rpc": 16,
    "max_subscriptions_per_peer": 4,
    "max_inbound_rpc_size": MAX_INBOUND_RPC_BYTES,
    "validation_cache_ttl": 120,
    "validation_cache_size": 1000,
}


def score_params() -> ScoreParams:
    """Peer scoring: only offences count, and nothing is earned by being quick or early."""
    return ScoreParams(
        p4_invalid_messages=TopicScoreParams(weight=10.0, cap=100.0, decay=0.9),
        p5_behavior_penalty_weight=1.0,
        p5_behavior_penalty_decay=0.9,
        p5_behavior_penalty_threshold=20.0,
        publish_threshold=-50.0,
        gossip_threshold=-40.0,
        graylist_threshold=-100.0,
        accept_px_threshold=0.0,
    )


class GossipService:
    """Publishes on one topic and hands every valid message of others to a callback."""

    def __init__(self, pubsub: SafePubsub, router: GossipSub, topic: str) -> None:
        self.pubsub = pubsub
        self.router = router
        self._topic = topic
        self._pace = Pace(PUBLISH_GAP_SECONDS)

    async def publish(self, data: bytes) -> None:
        """Send to everybody; returns when the message is in the neighbours' queues.

        Raises:
            ValueError: larger than a gossip message may be.
        """
        if len(data) > MAX_FRAME_BYTES:
            raise ValueError(f"a gossip message of {len(data)} bytes, the limit is {MAX_FRAME_BYTES}")
        await trio.sleep(self._pace.wait(trio.current_time()))
        await self.pubsub.publish(self._topic, data)

    def refuse(self, peer: bytes) -> None:
        self.pubsub.add_to_blacklist(id_of(peer))

    def accept(self, peer: bytes) -> None:
        self.pubsub.remove_from_blacklist(id_of(peer))


@asynccontextmanager
async def open_gossip(
    host: Host,
    *,
    topic: str,
    deliver: Callable[[bytes, bytes], None],
    blame: Callable[[bytes, Offence, str], None],
) -> AsyncIterator[GossipService]:
    """Gossip on ``topic``; ``deliver(author, data)`` gets what others say."""
    router = GossipSub(protocols=PROTOCOLS, score_params=score_params(), **ROUTER)
    forget_deliveries(router)

    def hand_over(message: Any) -> None:
        author = ID(message.from_id)
        if author != pubsub.my_id:
            deliver(key_of(author), bytes(message.data))

    pubsub = SafePubsub(
        host.libp2p,
        router,
        blame=blame_by_id(blame),
        within_budget=_Budgets().take,
        deliver=hand_over,
        limits={**PUBSUB, "allowed_topics": {topic}},
    )
    # Sequence numbers start from whole seconds; a node that restarts after a busy second would repeat some,
    # and its neighbours would take new messages for old ones.
    pubsub.counter = time.time_ns()
    pubsub.set_topic_validator(topic, _is_valid, False)
    async with background_trio_service(pubsub) as manager, background_trio_service(router) as heartbeat:
        contain(manager, "pubsub")
        contain(heartbeat, "gossipsub")
        await pubsub.wait_until_ready()
        await pubsub.subscribe(topic)
        yield GossipService(pubsub, router, topic)


def _is_valid(_forwarder: ID, message: Any) -> bool:
    # Size and kind of author only; the meaning is the core's to judge. The library caches one verdict per
    # message whoever forwards it, so nothing here may depend on who asks or when.
    if len(message.data) > MAX_FRAME_BYTES:
        return False
    try:
        key_of(ID(message.from_id))
    except ValueError:
        return False
    return True


class _Budgets:
    """Messages each neighbour may still bring us."""

    def __init__(self) -> None:
        self._budgets: dict[ID, Budget] = {}

    def take(self, forwarder: ID) -> bool:
        now = trio.current_time()
        if forwarder not in self._budgets:
            while len(self._budgets) >= MAX_CONNECTIONS:
                self._budgets.pop(next(iter(self._budgets)))
            self._budgets[forwarder] = Budget(rate=MESSAGES_PER_SECOND, burst=MESSAGE_BURST, now=now)
        return self._budgets[forwarder].take(1, now)
