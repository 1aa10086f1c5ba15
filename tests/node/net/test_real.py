"""Several real nodes, each with its network process, on loopback."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from sterna.errors import ConfigError, Unreachable
from sterna.net import (
    Gossip,
    Listening,
    NetConfig,
    NetRestarted,
    PeerBanned,
    PeerConnected,
    PeerDisconnected,
    PeerLied,
    open_net,
)
from sterna.net.blobs import path_of
from sterna_protocol.wire.chunks import blob_digest
from sterna_protocol.wire.ids import peer_name
from sterna_protocol.wire.limits import MAX_FRAME_BYTES
from tests.node.net.real import PATIENCE_SECONDS, Watch, gossip_until_heard, meet, node, program, put

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


@dataclass(frozen=True, slots=True)
class Duo:
    """Two connected nodes that tests share if they leave them as they were; starting one takes seconds."""

    folder: Path
    hub: Watch
    us: Watch


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def duo(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Duo]:
    folder = tmp_path_factory.mktemp("duo")
    async with node(folder, 1) as hub, node(folder, 2, *hub.net.addresses) as us:
        await meet(hub, us)
        yield Duo(folder, hub, us)


THREE_MIB = random.Random(1).randbytes(3 * 1024 * 1024 + 5)


async def test_gossip_reaches_all_and_proves_its_author(tmp_path: Path) -> None:
    async with (
        node(tmp_path, 1) as hub,
        node(tmp_path, 2, *hub.net.addresses) as left,
        node(tmp_path, 3, *hub.net.addresses) as right,
    ):
        await meet(hub, left, right)
        await gossip_until_heard(left, hub, right)
        largest = random.Random(2).randbytes(MAX_FRAME_BYTES)
        burst = [b"burst %d" % i for i in range(100)]
        for data in [*burst, largest]:
            await left.net.publish(data)
        for watch in (hub, right):
            for data in [*burst, largest]:
                heard = await watch.until(Gossip, lambda g, data=data: g.data == data)
                assert heard.author == left.net.peer
        assert left.count(Gossip) == 0, "a node must not hear itself"
        with pytest.raises(ValueError, match="limit"):
            await left.net.publish(bytes(MAX_FRAME_BYTES + 1))


async def test_a_request_is_answered_by_the_core_of_the_peer(duo: Duo) -> None:
    hub, us = duo.hub.net, duo.us.net
    question = random.Random(3).randbytes(60_000)
    assert await us.request(hub.peer, question) == us.peer[:1] + question
    assert await hub.request(us.peer, b"") == hub.peer[:1]
    with pytest.raises(Unreachable, match="not connected"):
        await hub.request(b"x" * 32, b"hello")


async def test_a_burst_of_requests_waits_its_turn(duo: Duo) -> None:
    questions = [b"%d" % i for i in range(40)]
    answers = await asyncio.gather(*(duo.us.net.request(duo.hub.net.peer, q, timeout=30) for q in questions))
    assert answers == [duo.us.net.peer[:1] + q for q in questions]


async def test_what_no_peer_has_is_unreachable(duo: Duo) -> None:
    with pytest.raises(Unreachable, match="does not have it"):
        await duo.us.net.fetch(bytes(32), 10, [duo.hub.net.peer], timeout=20)


async def test_what_is_no_key_is_refused_here(duo: Duo) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        await duo.us.net.request(b"short", b"")
    with pytest.raises(ValueError, match="32 bytes"):
        await duo.us.net.fetch(bytes(32), 1, [b"short"], timeout=1)
    with pytest.raises(ValueError, match="negative"):
        await duo.us.net.penalise(bytes(32), -1)


async def test_a_cancelled_call_is_cancelled_in_the_network_process(duo: Duo) -> None:
    hub, us = duo.hub.net, duo.us.net
    data = random.Random(4).randbytes(300_000)
    digest = blob_digest(data)
    first = asyncio.create_task(us.fetch(digest, len(data), [b"z" * 32], timeout=60))
    await us.request(hub.peer, b"by the time this is answered, the first has begun")
    second = asyncio.create_task(us.fetch(digest, len(data), [hub.peer], timeout=60))
    await us.request(hub.peer, b"and the second waits for it")
    put(duo.folder / "1", data)
    first.cancel()
    # The first one asks somebody who is not there for a minute unless it is really cancelled.
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert (await second).read_bytes() == data


async def test_the_address_names_the_key(tmp_path: Path) -> None:
    async with node(tmp_path, 1) as hub, node(tmp_path, 2) as other:
        [address] = hub.net.addresses
        assert address.endswith(f"/p2p/{peer_name(hub.net.peer)}")
        assert await other.net.dial(address) == hub.net.peer
        assert (await hub.until(PeerConnected)).peer == other.net.peer
        wrong = address.replace(peer_name(hub.net.peer), peer_name(bytes(range(32))))
        with pytest.raises(Unreachable):
            await other.net.dial(wrong)
        with pytest.raises(ValueError, match="not an address"):
            await other.net.dial("/ip4/127.0.0.1/tcp/1")


async def test_a_blob_comes_from_two_peers_of_whom_one_lies(tmp_path: Path) -> None:
    digest = put(tmp_path / "1", THREE_MIB)
    async with node(tmp_path, 1) as honest, node(tmp_path, 2, *honest.net.addresses) as us:
        file = path_of(tmp_path / "1", digest)
        async with program("tests.node.net.liar", us.net.addresses[0], str(file)) as liar:
            assert liar.stdout is not None and await liar.stdout.readline() == b"ready\n"
            await meet(us, honest)
            lying = (await us.until(PeerConnected, lambda e: e.peer != honest.net.peer)).peer
            path = await us.net.fetch(digest, len(THREE_MIB), [lying, honest.net.peer], timeout=30)
            assert path.read_bytes() == THREE_MIB
            assert path == path_of(tmp_path / "2", digest)
            # With nobody else to ask, the lie cannot be overtaken by the truth; and twice is no accident.
            path.unlink()
            with pytest.raises(Unreachable, match="lied"):
                await us.net.fetch(digest, len(THREE_MIB), [lying], timeout=10)
            lie = await us.until(PeerLied)
            assert (lie.peer, lie.digest) == (lying, digest)
            with pytest.raises(Unreachable):
                await us.net.fetch(digest, len(THREE_MIB), [lying], timeout=10)
            assert (await us.until(PeerBanned)).peer == lying
            await us.until(PeerDisconnected, lambda e: e.peer == lying)
            assert not path.exists()


async def test_peers_find_each_other_through_a_common_one(tmp_path: Path) -> None:
    async with (
        node(tmp_path, 1) as hub,
        node(tmp_path, 2, *hub.net.addresses) as left,
        node(tmp_path, 3, *hub.net.addresses) as right,
    ):
        await left.until(PeerConnected, lambda e: e.peer == right.net.peer)
        await right.until(PeerConnected, lambda e: e.peer == left.net.peer)
        assert await left.net.request(right.net.peer, b"?") == left.net.peer[:1] + b"?"


async def test_a_peer_that_listens_nowhere_can_still_pull(tmp_path: Path) -> None:
    digest = put(tmp_path / "1", THREE_MIB)
    async with node(tmp_path, 1) as hub:
        config = NetConfig(b"9" * 32, (), (), "sterna/test", tmp_path / "9")
        async with open_net(config) as light:
            assert light.addresses == ()
            assert await light.dial(hub.net.addresses[0]) == hub.net.peer
            path = await light.fetch(digest, len(THREE_MIB), [hub.net.peer], timeout=30)
            assert path.read_bytes() == THREE_MIB


async def test_a_silent_peer_is_dropped_and_welcomed_back(tmp_path: Path) -> None:
    async with node(tmp_path, 1) as hub, node(tmp_path, 2, *hub.net.addresses) as other:
        await meet(hub, other)
        assert other.net.process_id is not None
        os.kill(other.net.process_id, signal.SIGSTOP)
        try:
            await hub.until(PeerDisconnected)
        finally:
            mark = len(hub.seen)
            os.kill(other.net.process_id, signal.SIGCONT)
        await hub.until(PeerConnected, after=mark)
        await gossip_until_heard(other, hub)


async def test_a_killed_network_process_comes_back_with_key_and_port(tmp_path: Path) -> None:
    async with node(tmp_path, 1) as hub, node(tmp_path, 2, *hub.net.addresses) as other:
        await meet(hub, other)
        await gossip_until_heard(hub, other, text=b"before")
        for victim, witness in ((hub, other), (other, hub)):
            addresses = victim.net.addresses
            mark, seen = len(victim.seen), len(witness.seen)
            assert victim.net.process_id is not None
            os.kill(victim.net.process_id, signal.SIGKILL)
            restarted = await victim.until(NetRestarted, after=mark)
            assert restarted.exit_code == -signal.SIGKILL
            listening = await victim.until(Listening, after=mark)
            assert listening.addresses == addresses
            name = victim.net.peer
            await witness.until(PeerConnected, lambda e, name=name: e.peer == name, after=seen)
            await gossip_until_heard(victim, witness, text=b"after")
            await gossip_until_heard(witness, victim, text=b"and back")
        assert await other.net.request(hub.net.peer, b"?") == other.net.peer[:1] + b"?"


async def test_a_fetch_outlives_the_network_process(tmp_path: Path) -> None:
    digest = put(tmp_path / "1", THREE_MIB)
    async with node(tmp_path, 1) as hub, node(tmp_path, 2, *hub.net.addresses) as us:
        await meet(us)
        assert us.net.process_id is not None
        os.kill(us.net.process_id, signal.SIGKILL)
        path = await us.net.fetch(digest, len(THREE_MIB), [hub.net.peer], timeout=30)
        assert path.read_bytes() == THREE_MIB


async def test_a_peer_that_restarts_is_found_again(tmp_path: Path) -> None:
    async with node(tmp_path, 1) as hub:
        async with node(tmp_path, 2, *hub.net.addresses) as other:
            await meet(hub)
            name = other.net.peer
        await hub.until(PeerDisconnected, lambda e: e.peer == name)
        mark = len(hub.seen)
        async with node(tmp_path, 2, *hub.net.addresses) as again:
            assert again.net.peer == name
            await hub.until(PeerConnected, lambda e: e.peer == name, after=mark)
            await gossip_until_heard(again, hub)


async def test_a_penalised_peer_is_banned_and_does_not_come_back(tmp_path: Path) -> None:
    async with node(tmp_path, 1) as hub, node(tmp_path, 2, *hub.net.addresses) as bad:
        await meet(hub, bad)
        await hub.net.penalise(bad.net.peer, 60)
        await hub.net.penalise(bad.net.peer, 60)
        await hub.until(PeerBanned)
        await bad.until(PeerDisconnected)
        with pytest.raises(Unreachable):
            await bad.net.dial(hub.net.addresses[0])


async def test_a_closed_network_refuses_calls(tmp_path: Path) -> None:
    async with node(tmp_path, 1) as hub:
        pass
    with pytest.raises(Unreachable, match="closed"):
        await hub.net.publish(b"hello")


@pytest.mark.parametrize(
    ("listen", "bootstrap", "complaint"),
    [
        (("/ip4/192.0.2.1/tcp/0",), (), "cannot listen"),
        (("nonsense",), (), "listen addresses"),
        (("/ip4/127.0.0.1/tcp/0",), ("/ip4/127.0.0.1/tcp/1",), "bootstrap"),
    ],
)
async def test_a_wrong_address_is_reported_before_anything_runs(
    tmp_path: Path, listen: tuple[str, ...], bootstrap: tuple[str, ...], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        async with open_net(NetConfig(b"1" * 32, listen, bootstrap, "sterna/test", tmp_path)):
            pass


async def test_a_port_that_another_node_listens_on_is_not_shared_with_it(tmp_path: Path) -> None:
    async with node(tmp_path, 1) as hub:
        taken = hub.net.addresses[0].split("/p2p/")[0]
        (tmp_path / "second").mkdir()
        config = NetConfig(b"2" * 32, (taken,), (), "sterna/test", tmp_path / "second")
        with pytest.raises(ConfigError, match="is the port free"):
            async with open_net(config):
                pass


async def test_the_network_process_dies_with_its_parent(tmp_path: Path) -> None:
    script = (
        "import asyncio, pathlib, sys\n"
        "from sterna.net import NetConfig, open_net\n"
        "async def main():\n"
        "    listen, blobs = ('/ip4/127.0.0.1/tcp/0',), pathlib.Path(sys.argv[1])\n"
        "    config = NetConfig(b'1' * 32, listen, (), 'sterna/test', blobs)\n"
        "    async with open_net(config) as net:\n"
        "        print(net.process_id, flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    child = int(await parent.stdout.readline())
    parent.kill()
    await parent.wait()
    # The pipe to the dead parent's child is inherited by nobody; its end is the child's end.
    async with asyncio.timeout(20):
        while Path(f"/proc/{child}/status").exists() and "Z" not in _state(child):
            await asyncio.sleep(0.05)


def _state(process_id: int) -> str:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
