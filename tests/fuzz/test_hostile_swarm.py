"""Two thousand frames of noise against a node of a real swarm, while it trains, votes and merges."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from sterna.app.demo.run import Demo, DemoPlan
from tests.node.net.real import program
from tests.support.texts import short_texts

ROUNDS = 2
NOISE = ("random_frames", "mutated_frames", "undecodable_gossip", "bad_requests")


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.asyncio
async def test_rounds_are_certified_while_a_stranger_sends_noise(tmp_path: Path) -> None:
    demo = Demo(
        DemoPlan(
            folder=tmp_path,
            data=short_texts(tmp_path)[:3],
            base="nano",
            rounds=ROUNDS,
            steps=2,
            seed=0,
            chaos=False,
            measure=False,
        )
    )
    running = asyncio.create_task(demo.run())
    founder = demo.peers[0]
    while not founder.status().get("addresses"):
        assert not running.done(), running.exception()
        await asyncio.sleep(0.1)
    status = founder.status()
    results = await _send_noise(status["addresses"][0], f"sterna/{status['swarm']}")
    report = await running
    assert all("error" not in result for result in results), results
    assert sum(result.get("sent", 0) for result in results) >= 2000
    assert [entry["round"] for entry in report["rounds"]] == [1, 2]
    assert {peer["adapter_digest"] for peer in report["peers"]} == {report["pulled"]["digest"]}
    assert report["pulled"]["verified"] is True


async def _send_noise(address: str, topic: str) -> list[dict[str, Any]]:
    async with program("tests.fuzz.attacker", address, topic) as attacker:
        assert attacker.stdin is not None and attacker.stdout is not None
        assert json.loads(await attacker.stdout.readline()) == {"ready": True}
        results = []
        for name in NOISE:
            attacker.stdin.write(name.encode() + b"\n")
            await attacker.stdin.drain()
            results.append(json.loads(await attacker.stdout.readline()))
        return results
