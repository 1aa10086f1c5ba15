"""Taking a contributor out of a real swarm: two processes, libp2p on loopback, the shipped base."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sterna.app.demo.processes import LOOPBACK, DemoPeer, run_json
from sterna.app.homes import open_home_for_reading
from sterna.formats.peft import read_peft
from sterna_protocol.merge.adapter import decode_adapter, encode_adapter, genesis_adapter, lora_factors
from sterna_protocol.merge.codec import decode_delta
from sterna_protocol.merge.rules import merge
from sterna_protocol.swarm.charter import SignedCharter
from sterna_protocol.wire.chunks import blob_digest
from sterna_protocol.wire.ids import parse_peer_name
from sterna_protocol.wire.messages import Certificate, decode_frame
from tests.support.texts import short_texts

ROUNDS = 2


async def wait(peer: DemoPeer, reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    while not reached(status := peer.status()):
        peer.require_alive()
        await asyncio.sleep(0.2)
    return status


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.asyncio
async def test_an_adapter_without_one_peer_is_what_its_own_disk_says(tmp_path: Path) -> None:
    peers = [
        DemoPeer(index, tmp_path / f"peer-{index}", data)
        for index, data in enumerate(short_texts(tmp_path)[:2])
    ]
    founder, joiner = peers
    common = ("--listen", LOOPBACK, "--until-round", str(ROUNDS), "--seed", "0")
    try:
        await founder.start("swarm", "create", "--data", str(founder.data), "--steps", "2", *common)
        alone = await wait(founder, lambda status: bool(status.get("ticket")))
        assert (alone["peers_missing"], alone["min_deltas"], alone["ticket_invites"]) == (1, 2, True)
        assert "waiting            for 1 more peer" in founder.log.read_text()
        ticket = str(alone["ticket"])
        await joiner.start("join", ticket, "--data", str(joiner.data), *common)
        for peer in peers:
            await wait(
                peer, lambda status: status.get("certified_rounds", 0) >= ROUNDS and status["adapter_held"]
            )
        left_out = str(joiner.status()["peer"])
        output = tmp_path / "without"
        answer = await run_json("verify", ticket, "--without", left_out[:20], "-o", str(output))
        await wait(founder, lambda status: (status["judged"] or {}).get("round") == ROUNDS)
        shown = founder.status()
        assert shown["peers_missing"] == 0
    finally:
        await asyncio.gather(*(peer.stop() for peer in peers))

    assert answer["complete"] is True
    assert answer["replayed"] == answer["contributed"] == [1, 2]
    assert answer["adapter_digest"] != answer["certified_adapter_digest"] == shown["adapter_digest"]
    assert shown["served"]["loss"] > 0
    with open_home_for_reading(founder.home) as store:
        [membership] = store.swarms()
        charter = SignedCharter.decode(membership.signed_charter).charter
        adapter = genesis_adapter(charter)
        for frame in store.certificates(membership.swarm):
            certificate = decode_frame(frame)
            assert isinstance(certificate, Certificate)
            deltas = [
                (
                    entry,
                    decode_delta(
                        charter,
                        author=entry.author,
                        round_=entry.trained_round,
                        data=store.blobs.read(entry.delta),
                    ),
                )
                for entry in certificate.decision.entries
                if entry.author != parse_peer_name(left_out)
            ]
            adapter = merge(charter, adapter, deltas, certificate.round_)
    assert answer["adapter_digest"] == blob_digest(encode_adapter(charter, adapter)).hex()
    factors = lora_factors(charter, decode_adapter(charter, encode_adapter(charter, adapter)))
    linears = {name: (b.shape[0], a.shape[1]) for name, (a, b) in factors.items()}
    written = read_peft(output, linears=linears)
    for name, (a, b) in factors.items():
        assert (written.factors[name][0] == a).all()
        assert (written.factors[name][1] == b).all()
