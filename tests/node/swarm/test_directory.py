"""The directory: hands out the charter, learns addresses, dials who is missing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from sterna.errors import Unreachable
from sterna.swarm.directory import MAX_KNOWN, Directory
from sterna_protocol.errors import MalformedMessage
from sterna_protocol.swarm.directory import (
    decode_addresses,
    encode_addresses,
    encode_addresses_request,
    encode_charter_request,
    is_directory_request,
)

SWARM, OTHER_SWARM = b"s" * 32, b"o" * 32
ME, ADA, BEN = b"m" * 32, b"a" * 32, b"b" * 32
HERE = ("/ip4/127.0.0.1/tcp/1",)


class Wire:
    """A network on which every peer answers every request with ``response``."""

    def __init__(self, response: bytes = b"") -> None:
        self.response = response
        self.dialled: list[str] = []

    async def publish(self, data: bytes) -> None:
        raise NotImplementedError

    async def request(self, peer: bytes, data: bytes, *, timeout: float) -> bytes:
        if not self.response:
            raise Unreachable("nobody")
        return self.response

    async def respond(self, request_id: int, data: bytes) -> None:
        raise NotImplementedError

    async def fetch(self, digest: bytes, size: int, peers: Sequence[bytes], *, timeout: float) -> Path:
        raise NotImplementedError

    async def penalise(self, peer: bytes, points: int) -> None:
        raise NotImplementedError

    async def dial(self, address: str) -> bytes:
        self.dialled.append(address)
        return ADA


def directory(wire: Wire) -> Directory:
    return Directory(
        swarm=SWARM,
        me=ME,
        signed_charter=b"the charter",
        network=wire,
        dial=wire.dial,
        rng=random.Random(1),
        own_addresses=lambda: HERE,
    )


def test_the_charter_goes_to_whoever_asks_for_this_swarm_and_to_nobody_else() -> None:
    ours = directory(Wire())
    assert ours.answer(ADA, encode_charter_request(SWARM)) == b"the charter"
    assert ours.answer(ADA, encode_charter_request(OTHER_SWARM)) == b""


def test_a_peer_that_asks_is_known_to_the_next_one_that_asks() -> None:
    ours = directory(Wire())
    ours.answer(ADA, encode_addresses_request(SWARM, ("/ip4/10.0.0.1/tcp/2",)))
    known = decode_addresses(ours.answer(BEN, encode_addresses_request(SWARM, ())))
    assert known == {ADA: ("/ip4/10.0.0.1/tcp/2",), ME: HERE}


def test_another_swarm_learns_nothing_and_teaches_nothing() -> None:
    ours = directory(Wire())
    ours.answer(ADA, encode_addresses_request(OTHER_SWARM, ("/ip4/10.0.0.1/tcp/2",)))
    assert decode_addresses(ours.answer(BEN, encode_addresses_request(OTHER_SWARM, ()))) == {}
    assert decode_addresses(ours.answer(BEN, encode_addresses_request(SWARM, ()))) == {ME: HERE}


def test_addresses_that_cannot_be_said_are_left_out() -> None:
    long = "/dns4/" + "a" * 200 + "/tcp/1"
    assert decode_addresses(encode_addresses({ADA: (long, *HERE), BEN: (long,), ME: ()})) == {ADA: HERE}


def test_strangers_cannot_fill_the_memory() -> None:
    ours = directory(Wire())
    for number in range(MAX_KNOWN + 10):
        peer = number.to_bytes(32, "big")
        ours.answer(peer, encode_addresses_request(SWARM, (f"/ip4/10.0.0.1/tcp/{number + 1}",)))
    assert len(ours._known) == MAX_KNOWN


@pytest.mark.parametrize("data", [b"\x60", b"\x62junk", b"\x63", b""])
def test_garbage_is_refused(data: bytes) -> None:
    if not is_directory_request(data):
        return
    with pytest.raises(MalformedMessage):
        directory(Wire()).answer(ADA, data)


@pytest.mark.asyncio
async def test_a_missing_peer_is_dialled_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire(encode_addresses({ADA: ("/ip4/10.0.0.1/tcp/2",), ME: HERE}))
    monkeypatch.setattr("sterna.swarm.directory.ASK_INTERVAL_SECONDS", 0.0)
    ours = directory(wire)
    keeping = asyncio.create_task(ours.keep_connected(lambda: frozenset({BEN})))
    learned = await anext(ours.learned())
    while not wire.dialled:
        await asyncio.sleep(0)
    keeping.cancel()
    assert learned == (ADA, ("/ip4/10.0.0.1/tcp/2",))
    assert wire.dialled[0] == "/ip4/10.0.0.1/tcp/2"


@pytest.mark.asyncio
async def test_a_peer_that_answers_garbage_teaches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sterna.swarm.directory.ASK_INTERVAL_SECONDS", 0.0)
    ours = directory(Wire(b"\x63garbage"))
    keeping = asyncio.create_task(ours.keep_connected(lambda: frozenset({BEN})))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not keeping.done()
    keeping.cancel()
    assert ours._known == {}
