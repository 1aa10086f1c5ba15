"""A hostile stranger with an unguarded libp2p: ``python -m tests.fuzz.attacker ADDRESS TOPIC``.

Reads names of attacks from its input, one a line; answers each with one line of JSON. Every attack uses fresh
identities, because the node under attack bans the ones it recognises.
"""

from __future__ import annotations

import contextlib
import json
import random
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as new_noise_key
from libp2p.custom_types import TProtocol
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import PUBSUB_SIGNING_PREFIX
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.utils.varint import encode_uvarint, encode_varint_prefixed
from multiaddr import Multiaddr

GOSSIP, SYNC, CHUNK = "/meshsub/1.1.0", "/sterna/sync/1", "/sterna/chunk/1"
PROTOCOLS = (GOSSIP, SYNC, CHUNK)

FRAMES = 1000
"""Random ones, and again as many mutated ones, over the three protocols."""

FRAMES_PER_IDENTITY = 12
"""Fewer than this are enough for a ban, and then the rest fall on deaf ears: about half are still parsed."""

WORKERS = 8

YAMUX_HEADER = struct.Struct(">BBHII")


class Attacker:
    """Dials the victim under as many names as it likes."""

    def __init__(self, address: str, topic: str) -> None:
        self.topic = topic
        self.random = random.Random(20260101)
        self.victim = info_from_p2p_addr(Multiaddr(address))
        self.identities = 0
        self._naming = trio.Lock()
        key = create_new_key_pair(bytes(32))
        self._noise = Noise(key, noise_privkey=new_noise_key().private_key)
        self.host: Any = new_host(
            key_pair=key,
            sec_opt={NOISE: self._noise},
            connection_config=ConnectionConfig(
                max_connections=4096, min_connections=0, low_watermark=0, high_watermark=4096
            ),
        )
        self.swarm = self.host.get_network()
        self.swarm.retry_config = RetryConfig(max_retries=0)
        self.swarm.set_resource_manager(None)

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Guise]:
        """One connection under a new name."""
        async with self._naming:
            self.identities += 1
            key = create_new_key_pair(self.identities.to_bytes(32, "big"))
            self._noise.libp2p_privkey = key.private_key
            self._noise.local_peer = ID.from_pubkey(key.public_key)
            with trio.fail_after(10):
                connection = await self.swarm.dial_addr(self.victim.addrs[0], self.victim.peer_id)
        try:
            yield Guise(self, connection, key)
        finally:
            with trio.move_on_after(2):
                await connection.close()

    async def in_parallel(self, times: int, attack: Callable[[], Awaitable[None]]) -> None:
        """Closing a connection takes the library 0.2 s of waiting, so several attackers share the work."""
        left = iter(range(times))

        async def worker() -> None:
            for _ in left:
                await attack()

        async with trio.open_nursery() as nursery:
            for _ in range(WORKERS):
                nursery.start_soon(worker)


class Guise:
    """One connection under one name."""

    def __init__(self, attacker: Attacker, connection: Any, key: Any) -> None:
        self._host = attacker.host
        self._topic = attacker.topic
        self._random = attacker.random
        self._key = key
        self.connection = connection

    async def open(self, protocol: str) -> Any:
        stream = await self.connection.new_stream()
        await self._host.multiselect_client.select_one_of(
            [TProtocol(protocol)], MultiselectCommunicator(stream), 10
        )
        return stream

    async def send(self, protocol: str, data: bytes) -> None:
        """One frame on a stream of its own; a victim that hangs up first is within its rights."""
        with contextlib.suppress(Exception), trio.move_on_after(5):
            stream = await self.open(protocol)
            await stream.write(data)
            # Wait for the victim to answer or to hang up, so that it has seen the frame.
            with trio.move_on_after(0.02):
                await stream.read(1)
            await stream.reset()

    def message(self, data: bytes = b"hello from a stranger", **changes: Any) -> rpc_pb2.Message:
        """A correctly signed gossip message with some fields replaced afterwards."""
        message = rpc_pb2.Message(
            data=data,
            topicIDs=[self._topic],
            from_id=ID.from_pubkey(self._key.public_key).to_bytes(),
            seqno=self._random.randbytes(8),
        )
        payload = PUBSUB_SIGNING_PREFIX.encode() + message.SerializeToString()
        message.signature = self._key.private_key.sign(payload)
        message.key = self._key.public_key.serialize()
        for name, value in changes.items():
            message.ClearField(name) if value is None else setattr(message, name, value)
        return message

    def rpc(self, *messages: rpc_pb2.Message) -> bytes:
        packet = rpc_pb2.RPC(publish=list(messages))
        packet.subscriptions.append(rpc_pb2.RPC.SubOpts(subscribe=True, topicid=self._topic))
        return encode_varint_prefixed(packet.SerializeToString())


async def plaintext(attacker: Attacker) -> dict[str, Any]:
    """Attack 1: no encryption, under a name that is not ours."""
    key = create_new_key_pair()
    host: Any = new_host(
        key_pair=key, sec_opt={PLAINTEXT_PROTOCOL_ID: InsecureTransport(key, peerstore=None)}
    )
    host.get_network().retry_config = RetryConfig(max_retries=0)
    async with host.run([]):
        try:
            with trio.fail_after(8):
                await host.get_network().dial_addr(attacker.victim.addrs[0], attacker.victim.peer_id)
        except Exception as refused:  # noqa: BLE001  any refusal will do
            return {"refused": True, "why": type(refused).__name__}
    return {"refused": False}


async def undecodable_gossip(attacker: Attacker) -> dict[str, Any]:
    """Attack 2: an RPC of random bytes."""
    for _ in range(5):
        async with attacker.connection() as guise:
            await guise.send(GOSSIP, encode_varint_prefixed(attacker.random.randbytes(300)))
    return {}


async def bad_keys(attacker: Attacker) -> dict[str, Any]:
    """Attack 3: messages whose key is none, or whose author is missing."""
    short_rsa = bytes.fromhex("08001202") + b"\x30\x00"
    changes = (
        {"key": b"garbage", "from_id": b"\x12\x20" + bytes(32)},
        {"key": short_rsa, "from_id": b"\x12\x20" + bytes(32)},
        {"key": None, "from_id": None},
        {"from_id": b""},
        {"from_id": b"\x00\x24\x08\x01\x12\x20" + b"\xff" * 32},
        {"from_id": b"\x00\x24"},
        {"signature": b"short"},
        {"signature": b""},
        {"seqno": b""},
        {"data": b"changed"},
    )
    for change in changes:
        async with attacker.connection() as guise:
            await guise.send(GOSSIP, guise.rpc(guise.message(**change)))
    return {"frames": len(changes)}


async def not_utf8(attacker: Attacker) -> dict[str, Any]:
    """Attack 4: a stream that asks for a protocol which is no text."""
    async with attacker.connection() as guise:
        for _ in range(3):
            stream = await guise.connection.new_stream()
            await stream.write(encode_varint_prefixed(b"/multistream/1.0.0\n") + b"\x05\xff\xfe\xfd\xfc\n")
            with contextlib.suppress(Exception), trio.move_on_after(1):
                while await stream.read(64):
                    pass
    return {}


async def offending_content(attacker: Attacker) -> dict[str, Any]:
    """Attack 5: well-signed messages that the validator must refuse without raising."""
    for size in (16 * 1024 + 1, 60 * 1024):
        async with attacker.connection() as guise:
            await guise.send(GOSSIP, guise.rpc(guise.message(bytes(size))))
    async with attacker.connection() as guise:
        await guise.send(GOSSIP, encode_uvarint(2**40))
    return {}


async def bad_requests(attacker: Attacker) -> dict[str, Any]:
    """Attack 6: requests that make our own handlers refuse."""
    for protocol, frame in (
        (SYNC, b"\xff\xff\xff\xff"),
        (SYNC, b"\x00\x01\x00\x01" + bytes(9)),
        (CHUNK, b"\xff" + bytes(36)),
        (CHUNK, b"\x01" + bytes(32) + b"\xff\xff\xff\xff"),
        (CHUNK, b"\x02"),
        ("/ipfs/ping/1.0.0", b"short"),
        ("/ipfs/id/1.0.0", b"unasked"),
    ):
        async with attacker.connection() as guise:
            await guise.send(protocol, frame)
    return {}


async def churn(attacker: Attacker) -> dict[str, Any]:
    """Attack 7: 300 connections that come and go."""
    done = 0

    async def come_and_go() -> None:
        nonlocal done
        async with attacker.connection():
            done += 1

    await attacker.in_parallel(300, come_and_go)
    return {"connected": done}


async def negotiation_bomb(attacker: Attacker) -> dict[str, Any]:
    """A stranger's first line claims 2^28 bytes, and then they come."""
    address = attacker.victim.addrs[0]
    host, port = address.value_for_protocol("ip4"), int(address.value_for_protocol("tcp"))
    stream = await trio.open_tcp_stream(host, port)
    sent = 0
    try:
        with trio.move_on_after(5):
            await stream.send_all(encode_varint_prefixed(b"/multistream/1.0.0\n") + encode_uvarint(2**28))
            while sent < 128 * 1024 * 1024:
                await stream.send_all(bytes(65536))
                sent += 65536
    except trio.BrokenResourceError:
        pass
    await stream.aclose()
    return {"sent": sent}


async def window_flood(attacker: Attacker) -> dict[str, Any]:
    """Data past the receive window, on a stream that nobody reads."""
    sent = 0
    async with attacker.connection() as guise:
        stream = await guise.open(SYNC)
        await stream.write(b"\x00\x00\x00\x01x")  # a whole request: whatever follows stays unread
        yamux = guise.connection.muxed_conn
        frame = YAMUX_HEADER.pack(0, 0, 0, stream.muxed_stream.stream_id, 60_000) + bytes(60_000)
        with contextlib.suppress(Exception), trio.move_on_after(10):
            while sent < 256 * 1024 * 1024 and not yamux.is_closed:
                await yamux.secured_conn.write(frame)
                sent += 60_000
    return {"sent": sent}


async def stream_flood(attacker: Attacker) -> dict[str, Any]:
    """200 streams that are opened properly and left, then 2,000 opened at once."""
    async with attacker.connection() as guise:
        yamux = guise.connection.muxed_conn
        streams = [await yamux.open_stream() for _ in range(200)]
        with trio.move_on_after(5):
            while sum(not stream.closed for stream in streams) > 32:
                await trio.sleep(0.05)
        left = sum(not stream.closed for stream in streams)
        with contextlib.suppress(Exception), trio.move_on_after(10):
            for number in range(2000):
                await yamux.secured_conn.write(YAMUX_HEADER.pack(0, 1, 1, 1001 + 2 * number, 0))
    return {"left_open": left}


async def silent_sockets(attacker: Attacker) -> dict[str, Any]:
    """150 sockets that say nothing, held while an honest connection is made."""
    address = attacker.victim.addrs[0]
    host, port = address.value_for_protocol("ip4"), int(address.value_for_protocol("tcp"))
    sockets = [await trio.open_tcp_stream(host, port) for _ in range(150)]
    for socket in sockets:
        await socket.aclose()
    async with attacker.connection():
        return {"connected": True}


def _random_frame(guise: Guise, rand: random.Random, protocol: str) -> bytes:
    body = rand.randbytes(rand.choice((1, 5, 37, 300, 2000)))
    return encode_varint_prefixed(body) if protocol == GOSSIP else body


def _mutated_frame(guise: Guise, rand: random.Random, protocol: str) -> bytes:
    if protocol == GOSSIP:
        message = guise.message()
        [topic] = message.topicIDs
        packet = rpc_pb2.RPC(publish=[message])
        packet.subscriptions.append(rpc_pb2.RPC.SubOpts(subscribe=rand.random() < 0.5, topicid=topic))
        packet.control.ihave.add(topicID=topic, messageIDs=[rand.randbytes(40)])
        packet.control.iwant.add(messageIDs=[rand.randbytes(40)])
        packet.control.graft.add(topicID=topic)
        packet.control.prune.add(topicID=topic, backoff=rand.randrange(2**63))
        body = packet.SerializeToString()
    elif protocol == SYNC:
        body = struct.pack(">I", 40) + rand.randbytes(40)
    else:
        body = struct.pack(">B32sI", rand.choice((1, 2)), rand.randbytes(32), rand.randrange(4))
    data = bytearray(body)
    for _ in range(rand.randint(1, 4)):
        place = rand.randrange(len(data))
        match rand.randrange(4):
            case 0:
                data[place] ^= 1 << rand.randrange(8)
            case 1:
                data[place] = rand.randrange(256)
            case 2 if len(data) > 1:
                del data[place]
            case _:
                data[place:place] = rand.randbytes(rand.randint(1, 4))
    return encode_varint_prefixed(bytes(data)) if protocol == GOSSIP else bytes(data)


async def _frames(attacker: Attacker, make: Callable[[Guise, random.Random, str], bytes]) -> dict[str, Any]:
    sent = 0

    async def one_identity() -> None:
        nonlocal sent
        async with attacker.connection() as guise:
            for _ in range(FRAMES_PER_IDENTITY):
                protocol = PROTOCOLS[sent % len(PROTOCOLS)]
                sent += 1
                await guise.send(protocol, make(guise, attacker.random, protocol))

    await attacker.in_parallel(-(-FRAMES // FRAMES_PER_IDENTITY), one_identity)
    return {"sent": sent, "identities": attacker.identities}


async def random_frames(attacker: Attacker) -> dict[str, Any]:
    return await _frames(attacker, _random_frame)


async def mutated_frames(attacker: Attacker) -> dict[str, Any]:
    return await _frames(attacker, _mutated_frame)


ATTACKS: dict[str, Callable[[Attacker], Awaitable[dict[str, Any]]]] = {
    attack.__name__: attack
    for attack in (
        plaintext,
        undecodable_gossip,
        bad_keys,
        not_utf8,
        offending_content,
        bad_requests,
        churn,
        negotiation_bomb,
        window_flood,
        stream_flood,
        silent_sockets,
        random_frames,
        mutated_frames,
    )
}


async def main(address: str, topic: str) -> None:
    attacker = Attacker(address, topic)
    async with attacker.host.run([]):
        _say({"ready": True})
        while name := (await trio.to_thread.run_sync(sys.stdin.readline)).strip():
            start = trio.current_time()
            try:
                result = await ATTACKS[name](attacker)
            except Exception as error:  # noqa: BLE001  the test reads it
                result = {"error": repr(error)}
            _say({"attack": name, "seconds": round(trio.current_time() - start, 1), **result})


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
