"""A real swarm: processes, libp2p on loopback, SQLite files, the shipped base, SIGKILL."""

from __future__ import annotations

from pathlib import Path

import pytest

from sterna.app.demo.run import Demo, DemoPlan
from sterna.app.homes import open_home_for_reading
from sterna.formats.peft import read_peft
from sterna_protocol.merge.adapter import decode_adapter, lora_factors
from sterna_protocol.swarm.charter import SignedCharter
from tests.support.texts import short_texts

ROUNDS = 3


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.asyncio
async def test_a_swarm_with_a_killed_peer_certifies_every_round_and_a_stranger_verifies_it(
    tmp_path: Path,
) -> None:
    texts = short_texts(tmp_path)
    plan = DemoPlan(
        folder=tmp_path,
        data=texts,
        base="nano",
        rounds=ROUNDS,
        steps=2,
        seed=0,
        chaos=True,
        measure=False,
    )
    report = await Demo(plan).run()
    assert [entry["round"] for entry in report["rounds"]] == [1, 2, 3]
    assert all(entry["slate_size"] >= len(texts) - 1 for entry in report["rounds"])
    digests = {peer["adapter_digest"] for peer in report["peers"]}
    assert digests == {report["pulled"]["digest"]}
    assert report["pulled"]["verified"] is True
    assert report["chaos"]["conflicting_own_messages"] == 0
    with open_home_for_reading(tmp_path / "peer-4") as store:
        [membership] = store.swarms()
        charter = SignedCharter.decode(membership.signed_charter).charter
        adapter = decode_adapter(charter, store.blobs.read(bytes.fromhex(digests.pop())))
        assert len(store.certificates(membership.swarm)) == ROUNDS
    factors = lora_factors(charter, adapter)
    linears = {name: (b.shape[0], a.shape[1]) for name, (a, b) in factors.items()}
    pulled = read_peft(tmp_path / "adapter", linears=linears)
    for name, (a, b) in factors.items():
        assert (pulled.factors[name][0] == a).all()
        assert (pulled.factors[name][1] == b).all()
