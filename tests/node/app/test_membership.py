"""Inviting and revoking in a real swarm: processes, libp2p on loopback, the shipped base."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sterna.app.demo.processes import LOOPBACK, DemoPeer, run_json
from sterna.errors import NodeError
from sterna_protocol.swarm.ticket import decode_ticket, encode_ticket
from tests.support.texts import short_texts

WAIT_SECONDS = 120


async def wait(peer: DemoPeer, reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            peer.require_alive()
            status = peer.status()
            if status.get("running") and reached(status):
                return status
            await asyncio.sleep(0.2)


def classes(status: dict[str, Any]) -> dict[str, str]:
    return {entry["peer"]: entry["class"] for entry in status["roll"]}


async def command(peer: DemoPeer, *arguments: str) -> dict[str, Any]:
    return await run_json(*arguments, "--home", str(peer.home))


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.asyncio
async def test_a_friend_of_a_friend_joins_and_goes_with_the_friend(tmp_path: Path) -> None:
    texts = short_texts(tmp_path)
    founder, friend, second, stranger = peers = [
        DemoPeer(index, tmp_path / f"peer-{index}", text) for index, text in enumerate(texts)
    ]
    common = ("--listen", LOOPBACK, "--seed", "0")
    try:
        await founder.start(
            *("swarm", "create", "--data", str(founder.data), "--steps", "1", "--min-deltas", "1"),
            *("--train-seconds", "20", *common),
        )
        await wait(founder, lambda status: bool(status.get("ticket")))
        first = await command(founder, "invite", "--may-invite", "1")
        await friend.start("join", first["ticket"], "--data", str(friend.data), *common)
        status = await wait(friend, lambda status: status["class"] == "invited")
        name = status["peer"]

        # A ticket that invites nobody is good for looking on, not for joining.
        with pytest.raises(NodeError, match="this ticket invites nobody"):
            await command(stranger, "join", status["ticket"], "--data", str(stranger.data), *common)

        # The invite was for one.
        await stranger.start("join", first["ticket"], "--data", str(stranger.data), *common)
        refused = await wait(stranger, lambda status: bool(status["errors"]))
        assert "not in the swarm" in refused["errors"][0]

        then = await command(friend, "invite")
        await second.start("join", then["ticket"], "--data", str(second.data), *common)
        joined = await wait(second, lambda status: status["class"] == "invited")
        [entry] = [entry for entry in joined["roll"] if entry["peer"] == joined["peer"]]
        assert entry["inviter"] == name
        with pytest.raises(NodeError, match="may invite 0 more"):
            await command(friend, "invite")

        cut = await command(founder, "revoke", name[:20])
        assert cut["below"] == [joined["peer"]]
        alone = await wait(founder, lambda status: len(status["roll"]) == 1)
        assert classes(alone) == {alone["peer"]: "founder"}
        for peer in (friend, second):
            out = await wait(peer, lambda status: bool(status["errors"]))
            assert "not in the swarm" in out["errors"][0]
        await wait(founder, lambda status: status["round"] >= alone["round"] + 2)
    finally:
        await asyncio.gather(*(peer.stop() for peer in peers))


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.asyncio
async def test_a_founder_takes_a_new_key_and_goes_on_without_a_peer_that_never_returns(
    tmp_path: Path,
) -> None:
    texts = short_texts(tmp_path)
    founder, friend = peers = [
        DemoPeer(index, tmp_path / f"peer-{index}", text) for index, text in enumerate(texts[:2])
    ]
    common = ("--listen", LOOPBACK, "--seed", "0")
    try:
        await founder.start(
            *("swarm", "create", "--data", str(founder.data), "--steps", "1", "--min-deltas", "1"),
            *("--train-seconds", "5", *common),
        )
        status = await wait(founder, lambda status: bool(status.get("ticket")))
        old = status["peer"]
        await friend.start("join", status["ticket"], "--data", str(friend.data), *common)
        await wait(friend, lambda status: status["class"] == "invited")

        turned = await command(founder, "id", "rotate")
        after = await wait(founder, lambda status: status["peer"] == turned["new"])
        assert after["class"] == "founder"
        assert old not in classes(after)
        await wait(friend, lambda status: turned["new"] in status["committee"])

        # Both sit in the committee: without the friend there is no quorum.
        await wait(founder, lambda status: len(status["committee"]) == 2)
        await friend.kill()
        await founder.stop()
        done = await command(founder, "swarm", "reform")
        assert done["done"]
        assert done["committee"] == [turned["new"]]
        await founder.start("resume", *common)
        await wait(founder, lambda status: status["round"] >= done["round"] + 2)
    finally:
        await asyncio.gather(*(peer.stop() for peer in peers))


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.asyncio
async def test_a_private_swarm_talks_to_nobody_who_lacks_its_key(tmp_path: Path) -> None:
    texts = short_texts(tmp_path)
    founder, friend = peers = [
        DemoPeer(index, tmp_path / f"peer-{index}", text) for index, text in enumerate(texts[:2])
    ]
    common = ("--listen", LOOPBACK, "--seed", "0")
    try:
        await founder.start(
            *("swarm", "create", "--data", str(founder.data), "--steps", "1", "--min-deltas", "1"),
            *("--admission", "psk", "--train-seconds", "5", *common),
        )
        status = await wait(founder, lambda status: bool(status.get("ticket")))
        await friend.start("join", status["ticket"], "--data", str(friend.data), *common)
        joined = await wait(friend, lambda status: status["class"] == "invited")

        # A member's ticket invites nobody, but whoever has it may look on.
        looking = ("--format", "sterna", "--output")
        await run_json("pull", joined["ticket"], *looking, str(tmp_path / "adapter.sterna"))

        blind = encode_ticket(replace(decode_ticket(status["ticket"]), invite=b""))
        with pytest.raises(NodeError, match="code 4"):
            await run_json("pull", blind, *looking, str(tmp_path / "none.sterna"), "--timeout", "5")
    finally:
        await asyncio.gather(*(peer.stop() for peer in peers))
