"""Everything known to kill or bloat an unguarded node, against a real one; then two thousand frames of noise.

After each attack the network process must be the same one, and gossip with an honest peer must work.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from sterna.net.hardened_connections import MAX_INBOUND_STREAMS
from tests.fuzz.attacker import ATTACKS
from tests.node.net.real import PATIENCE_SECONDS, Watch, gossip_until_heard, meet, node, program

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

MAX_GROWTH_KIB = 64 * 1024
"""Resident memory an attack may cost for good or for a moment."""

EXPECTED: dict[str, Callable[[dict[str, Any]], bool]] = {
    "plaintext": lambda result: result["refused"] is True,
    "churn": lambda result: result["connected"] == 300,
    "negotiation_bomb": lambda result: result["sent"] < 8 * 1024 * 1024,
    "window_flood": lambda result: result["sent"] < 32 * 1024 * 1024,
    "stream_flood": lambda result: result["left_open"] <= MAX_INBOUND_STREAMS,
    "silent_sockets": lambda result: result["connected"] is True,
}
"""What else must hold; the bytes sent are those that fit into buffers before the node hangs up."""


class Arena:
    def __init__(self, victim: Watch, friend: Watch, attacker: asyncio.subprocess.Process) -> None:
        self.victim = victim
        self.friend = friend
        self._attacker = attacker

    async def attack(self, name: str) -> dict[str, Any]:
        assert self._attacker.stdin is not None and self._attacker.stdout is not None
        self._attacker.stdin.write(name.encode() + b"\n")
        await self._attacker.stdin.drain()
        async with asyncio.timeout(100):
            result: dict[str, Any] = json.loads(await self._attacker.stdout.readline())
        return result

    def peak_kib(self) -> int:
        status = Path(f"/proc/{self.victim.net.process_id}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def arena(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Arena]:
    folder = tmp_path_factory.mktemp("fuzz")
    async with node(folder, 1) as victim, node(folder, 2, *victim.net.addresses) as friend:
        await meet(victim, friend)
        await gossip_until_heard(friend, victim)
        async with program("tests.fuzz.attacker", victim.net.addresses[0], "sterna/test") as attacker:
            assert attacker.stdout is not None
            async with asyncio.timeout(PATIENCE_SECONDS):
                assert json.loads(await attacker.stdout.readline()) == {"ready": True}
            yield Arena(victim, friend, attacker)


@pytest.mark.parametrize("name", ATTACKS)
async def test_the_network_process_survives(arena: Arena, name: str) -> None:
    process, peak = arena.victim.net.process_id, arena.peak_kib()
    result = await arena.attack(name)
    assert "error" not in result, result
    assert EXPECTED.get(name, lambda _: True)(result), result
    await gossip_until_heard(arena.friend, arena.victim, text=b"after " + name.encode())
    await gossip_until_heard(arena.victim, arena.friend, text=b"back after " + name.encode())
    assert arena.victim.net.process_id == process
    assert arena.victim.net.restarts == 0
    assert arena.peak_kib() - peak < MAX_GROWTH_KIB, result
