"""One question, one answer, over streams in memory."""

import pytest
import trio
import trio.testing

from sterna.net import sync
from sterna.net.streams import Lost, Misbehaved
from sterna.net.sync import SyncServer, ask
from sterna_protocol.wire.limits import MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES
from tests.node.net.memory import pair

ALICE = b"a" * 32


def virtual(test):
    def run():
        trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0))

    run.__name__ = test.__name__
    return run


def echo_server() -> SyncServer:
    async def deliver(peer: bytes, request_id: int, data: bytes) -> None:
        server.respond(request_id, peer[:1] + data)

    server = SyncServer(deliver)
    return server


@virtual
async def test_the_answer_is_what_the_core_gave():
    ours, theirs = pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo_server().serve, ALICE, theirs)
        assert await ask(ours, b"heads?", seconds=1) == b"aheads?"


@virtual
async def test_an_empty_request_and_an_empty_answer_are_messages_too():
    async def deliver(peer, request_id, data):
        assert data == b""
        server.respond(request_id, b"")

    server = SyncServer(deliver)
    ours, theirs = pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve, ALICE, theirs)
        assert await ask(ours, b"", seconds=1) == b""


@virtual
async def test_a_core_that_does_not_answer_costs_its_deadline():
    async def deliver(peer, request_id, data):
        pass

    ours, theirs = pair()
    await ours.write(bytes(4))
    start = trio.current_time()
    with pytest.raises(Lost, match="no answer"):
        await SyncServer(deliver).serve(ALICE, theirs)
    assert trio.current_time() - start == sync.ANSWER_SECONDS


@virtual
async def test_a_peer_that_does_not_answer_costs_our_deadline():
    ours, _theirs = pair()
    start = trio.current_time()
    with pytest.raises(Lost):
        await ask(ours, b"anyone?", seconds=7)
    assert trio.current_time() - start == 7


@virtual
async def test_a_request_over_the_limit_is_refused_before_its_bytes():
    ours, theirs = pair()
    await ours.write((MAX_REQUEST_BYTES + 1).to_bytes(4, "big"))
    with pytest.raises(Misbehaved):
        await echo_server().serve(ALICE, theirs)


@virtual
async def test_an_answer_over_the_limit_is_refused_before_its_bytes():
    ours, theirs = pair()
    await theirs.write((MAX_RESPONSE_BYTES + 1).to_bytes(4, "big"))
    with pytest.raises(Misbehaved):
        await ask(ours, b"", seconds=1)


@virtual
async def test_our_own_messages_over_the_limit_are_our_error():
    ours, _ = pair()
    with pytest.raises(ValueError, match="limit"):
        await ask(ours, bytes(MAX_REQUEST_BYTES + 1), seconds=1)
    with pytest.raises(ValueError, match="limit"):
        echo_server().respond(1, bytes(MAX_RESPONSE_BYTES + 1))


@virtual
async def test_an_answer_to_nobody_changes_nothing():
    echo_server().respond(123, b"late")


@virtual
async def test_one_peer_may_have_only_so_many_requests_waiting():
    async def deliver(peer, request_id, data):
        pass

    server = SyncServer(deliver)

    async def wait_in_vain():
        ours, theirs = pair()
        await ours.write(bytes(4))
        with pytest.raises(Lost):
            await server.serve(ALICE, theirs)

    async with trio.open_nursery() as nursery:
        for _ in range(sync.MAX_PENDING_PER_PEER):
            nursery.start_soon(wait_in_vain)
        await trio.testing.wait_all_tasks_blocked()
        start = trio.current_time()
        await wait_in_vain()
        assert trio.current_time() == start
