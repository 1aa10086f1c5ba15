"""Pings and redials against a host that is not there, in virtual time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from sterna.net import liveness
from sterna.net.liveness import Redialler, keep_alive
from sterna.net.streams import Lost, Stream, read_exactly
from tests.node.net.memory import pair

PEER = bytes.fromhex("8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c")
ADDRESS = "/ip4/192.0.2.1/tcp/4001/p2p/12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5"


class FakeHost:
    """A host whose one peer is reachable or not, and echoes or not."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.connected = False
        self.reachable = False
        self.echoes = True
        self.dials: list[float] = []
        self.dropped: float | None = None

    def is_connected(self, peer: bytes) -> bool:
        return self.connected and peer == PEER

    async def dial(self, address: str) -> bytes:
        self.dials.append(trio.current_time())
        await trio.sleep(0)
        if not self.reachable:
            raise Lost("nobody there")
        self.connected = True
        return PEER

    async def open(self, peer: bytes, protocol: str) -> Stream:
        ours, theirs = pair()

        async def echo() -> None:
            try:
                while self.echoes:
                    await theirs.write(await read_exactly(theirs, liveness.PING_BYTES, seconds=1e9))
                await trio.sleep_forever()
            except Lost:
                return

        self._nursery.start_soon(echo)
        return ours

    async def drop(self, peer: bytes) -> None:
        self.connected = False
        self.dropped = trio.current_time()


def virtual(test: Callable[[FakeHost, trio.Nursery], Awaitable[None]]) -> Callable[[], None]:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await test(FakeHost(nursery), nursery)
            nursery.cancel_scope.cancel()

    def run() -> None:
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))

    run.__name__ = test.__name__
    return run


@virtual
async def test_a_peer_that_echoes_is_kept(host, nursery):
    host.connected = True
    nursery.start_soon(keep_alive, host, PEER)
    await trio.sleep(600)
    assert host.dropped is None


@virtual
async def test_a_silent_peer_is_dropped_after_two_timeouts_and_not_before(host, nursery):
    host.connected, host.echoes = True, False
    start = trio.current_time()
    await keep_alive(host, PEER)
    assert host.dropped == pytest.approx(start + liveness.MISSES * liveness.PING_TIMEOUT_SECONDS)


@virtual
async def test_one_missed_ping_is_forgiven(host, nursery):
    host.connected, host.echoes = True, False
    nursery.start_soon(keep_alive, host, PEER)
    await trio.sleep(liveness.PING_TIMEOUT_SECONDS - 1)
    host.echoes = True
    await trio.sleep(600)
    assert host.dropped is None


@virtual
async def test_misses_that_are_not_in_a_row_do_not_add_up(host, nursery):
    host.connected = True
    nursery.start_soon(keep_alive, host, PEER)
    for _ in range(5):
        await trio.sleep(60)
        host.echoes = False
        # Long enough to meet one ping and its timeout, too short for the next one's.
        await trio.sleep(liveness.PING_EVERY_SECONDS + 1)
        host.echoes = True
    await trio.sleep(60)
    assert host.dropped is None


@virtual
async def test_a_wanted_peer_is_dialled_until_it_is_there_with_growing_pauses(host, nursery):
    Redialler(host, nursery).want([ADDRESS], for_ever=True)
    await trio.sleep(4 * liveness.FORGET_SECONDS)
    pauses = [later - earlier for earlier, later in zip(host.dials, host.dials[1:], strict=False)]
    assert 0.5 * liveness.FIRST_REDIAL_SECONDS <= pauses[0] <= liveness.FIRST_REDIAL_SECONDS
    assert max(pauses) <= liveness.LAST_REDIAL_SECONDS
    assert min(pauses[10:]) >= 0.5 * liveness.LAST_REDIAL_SECONDS
    host.reachable = True
    await trio.sleep(liveness.LAST_REDIAL_SECONDS)
    assert host.connected
    calm = len(host.dials)
    await trio.sleep(600)
    assert len(host.dials) == calm


@virtual
async def test_a_lost_peer_is_dialled_again_at_once(host, nursery):
    host.reachable = True
    redialler = Redialler(host, nursery)
    redialler.want([ADDRESS], for_ever=False)
    await trio.testing.wait_all_tasks_blocked()
    assert host.connected
    await trio.sleep(10 * liveness.FORGET_SECONDS)
    host.connected = False
    redialler.lost()
    await trio.testing.wait_all_tasks_blocked()
    assert host.connected
    assert host.dials[-1] == trio.current_time()


@virtual
async def test_a_peer_that_is_no_bootstrap_is_forgotten_after_an_hour(host, nursery):
    Redialler(host, nursery).want([ADDRESS], for_ever=False)
    await trio.sleep(2 * liveness.FORGET_SECONDS)
    assert host.dials[-1] <= liveness.FORGET_SECONDS + liveness.LAST_REDIAL_SECONDS
    assert host.dials[-1] > 0.9 * liveness.FORGET_SECONDS


@virtual
async def test_the_same_address_is_dialled_by_one_task_only(host, nursery):
    redialler = Redialler(host, nursery)
    redialler.want([ADDRESS, ADDRESS], for_ever=True)
    redialler.want([ADDRESS], for_ever=False)
    await trio.testing.wait_all_tasks_blocked()
    assert len(host.dials) == 1
    with pytest.raises(ValueError, match="not an address"):
        redialler.want(["nonsense"], for_ever=True)
