"""A private network: who lacks its key exchanges no byte of the protocol."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sterna.errors import Unreachable
from sterna.net import Gossip, PeerConnected
from tests.node.net.real import gossip_until_heard, meet, node, put

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.asyncio]

KEY, ANOTHER = b"k" * 32, b"l" * 32


async def test_members_talk_and_fetch_and_nobody_else_gets_in(tmp_path: Path) -> None:
    async with (
        node(tmp_path, 1, network_key=KEY) as hub,
        node(tmp_path, 2, *hub.net.addresses, network_key=KEY) as member,
    ):
        await meet(hub, member)
        await gossip_until_heard(member, hub)
        data = b"delta" * 100_000
        digest = put(tmp_path / "1", data)
        await member.net.fetch(digest, len(data), [hub.net.peer], timeout=30)
        for key in (b"", ANOTHER):
            async with node(tmp_path, 3, *hub.net.addresses, network_key=key) as stranger:
                # Long enough for several dials on loopback, each of which takes milliseconds.
                await asyncio.sleep(5)
                with pytest.raises(Unreachable):
                    await stranger.net.request(hub.net.peer, b"anybody there?", timeout=2)
                assert stranger.count(PeerConnected) == 0
                assert stranger.count(Gossip) == 0
        # Whoever hammered at the door has not kept it shut for members.
        async with node(tmp_path, 4, *hub.net.addresses, network_key=KEY) as late:
            await meet(hub, late)
