"""The library's defaults are unsafe, so what is in force after a start is looked at, not what was passed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from sterna.net import gossip
from sterna.net.gossip import GossipService, open_gossip
from sterna.net.hardened_connections import BoundedYamux, Ed25519Noise, StrictStream
from sterna.net.hardened_gossip import MAX_OUTBOUND_MESSAGES
from sterna.net.host import Host, open_host, parse_address
from sterna.net.peer_ids import id_of

TOPIC = "sterna/test"
STRANGER = bytes(range(32))


def with_node(test: Callable[[Host, GossipService], Awaitable[None]]) -> Callable[[], None]:
    async def main() -> None:
        def ignore(_author: bytes, _data: bytes) -> None: ...

        async with (
            open_host(
                seed=b"s" * 32,
                listen=["/ip4/127.0.0.1/tcp/0"],
                admit=lambda peer: True,
                blame=lambda peer, offence, why: None,
            ) as host,
            open_gossip(host, topic=TOPIC, deliver=ignore, blame=lambda peer, offence, why: None) as service,
        ):
            await test(host, service)

    def run() -> None:
        trio.run(main)

    run.__name__ = test.__name__
    return run


@with_node
async def test_only_noise_and_yamux_and_tcp_are_offered(host: Host, _: GossipService) -> None:
    upgrader = host.swarm.upgrader
    security = upgrader.security_multistream.transports
    assert [type(transport) for transport in security.values()] == [Ed25519Noise]
    assert list(upgrader.muxer_multistream.transports) == ["/yamux/1.0.0"]
    assert [type(t).__name__ for t in host.swarm.transport_manager.get_transports()] == ["TCP"]


@with_node
async def test_connections_are_bounded_in_both_directions(host: Host, _: GossipService) -> None:
    async with open_host(
        seed=b"t" * 32, listen=[], admit=lambda peer: True, blame=lambda peer, offence, why: None
    ) as other:
        peer = await other.dial(host.addresses[0])
        [outbound] = other.swarm.get_connections(id_of(peer))
        while not host.peers():
            await trio.sleep(0.01)
        [inbound] = host.swarm.get_connections(id_of(host.peers()[0]))
        assert type(outbound.muxed_conn) is type(inbound.muxed_conn) is BoundedYamux
        stream = await other.open(peer, "/ipfs/ping/1.0.0")
        assert type(stream._stream.muxed_stream) is StrictStream  # type: ignore[attr-defined]
        await other.drop(peer)
        while host.peers():
            await trio.sleep(0.01)


@with_node
async def test_only_what_we_use_is_answered(host: Host, _: GossipService) -> None:
    assert set(host.libp2p.multiselect.handlers) == {"/ipfs/id/1.0.0", "/ipfs/ping/1.0.0", *gossip.PROTOCOLS}


@with_node
async def test_gossip_runs_with_the_parameters_written_down(_: Host, service: GossipService) -> None:
    router: Any = service.router
    for name, value in gossip.ROUTER.items():
        in_force = {
            "gossip_window": lambda: router.mcache.window_size,
            "gossip_history": lambda: router.mcache.history_size,
            "max_pending_messages_per_peer": lambda: router._max_pending_messages_per_peer,
            "pending_messages_ttl": lambda: router._pending_messages_ttl,
        }.get(name, lambda name=name: getattr(router, name))()
        assert in_force == value, name
    assert router.heartbeat_interval == 1
    pubsub: Any = service.pubsub
    assert pubsub.strict_signing
    assert pubsub.max_inbound_rpc_size == 128 * 1024
    assert pubsub.allowed_topics == {TOPIC}
    assert pubsub.max_subscriptions_per_rpc == 16
    assert pubsub.topic_validators.keys() == {TOPIC}


@with_node
async def test_invalid_messages_cost_a_peer_its_voice(_: Host, service: GossipService) -> None:
    scorer: Any = service.router.scorer
    peer = id_of(STRANGER)
    assert scorer.allow_publish(peer, [TOPIC])
    for _ in range(6):
        scorer.on_invalid_message(peer, TOPIC)
    assert not scorer.allow_publish(peer, [TOPIC])
    assert not scorer.is_graylisted(peer, [TOPIC])
    for _ in range(6):
        scorer.on_invalid_message(peer, TOPIC)
    assert scorer.is_graylisted(peer, [TOPIC])


@with_node
async def test_queues_to_a_peer_are_deep_and_their_frames_small(_: Host, service: GossipService) -> None:
    from libp2p.pubsub.rpc_queue import RpcQueue

    service.pubsub.peer_queues[id_of(STRANGER)] = RpcQueue()
    queue = service.pubsub.peer_queues[id_of(STRANGER)]
    assert queue._queue.max_size == MAX_OUTBOUND_MESSAGES
    assert queue.max_message_size < service.pubsub.max_inbound_rpc_size


@with_node
async def test_the_library_dials_nobody_by_itself(host: Host, _: GossipService) -> None:
    host.libp2p.peerstore.add_addrs(id_of(STRANGER), [], 60)
    dialled: list[object] = []
    host.swarm.dial_peer = dialled.append
    await host.swarm.auto_connector.maybe_connect()
    assert dialled == []


def test_a_stream_ends_its_connection_when_the_window_is_exceeded() -> None:
    class Connection:
        broke_window = False

    connection = Connection()
    stream = StrictStream(1, connection, False)
    stream.recv_window = 0
    with pytest.raises(trio.TooSlowError):
        stream.recv_window -= 1
    assert connection.broke_window


@pytest.mark.parametrize(
    "address",
    [
        "",
        "nonsense",
        "/ip4/127.0.0.1/tcp/1",
        "/ip4/127.0.0.1/udp/1/quic-v1/p2p/12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5",
        "/ip4/127.0.0.1/tcp/1/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
        "/ip4/127.0.0.1/tcp/99999/p2p/12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5",
    ],
)
def test_an_address_that_names_no_peer_of_ours_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="not an address"):
        parse_address(address)


def test_an_address_names_its_peer() -> None:
    name = "12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5"
    peer, where = parse_address(f"/ip4/127.0.0.1/tcp/4001/p2p/{name}")
    assert peer.hex().startswith("8a88e3dd")
    assert str(where) == "/ip4/127.0.0.1/tcp/4001"
