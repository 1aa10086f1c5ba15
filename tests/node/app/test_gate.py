"""A poisoned adapter, judged for real: a training process, a text, a store, and a restart."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from sterna.app.chat import served_adapter
from sterna.app.journal import SwarmJournal
from sterna.app.trainer import WorkerTrainer
from sterna.store import open_store
from sterna.swarm.gate import Gate
from sterna.train.base import open_base
from sterna.train.worker import WorkerConfig, open_worker
from sterna_protocol.merge.adapter import Adapter, decode_adapter, encode_adapter, genesis_adapter
from sterna_protocol.merge.codec import decode_delta
from sterna_protocol.merge.rules import merge
from sterna_protocol.swarm.charter import Charter, sign_charter
from sterna_protocol.wire.messages import SlateEntry
from tests.node.train.tiny import charter_for, write_text, write_tiny_base
from tests.support.charters import key

FOUNDER = key(1)


async def trained(trainer: WorkerTrainer, charter: Charter, adapter: Adapter, round_: int) -> Adapter:
    """What a swarm of this one peer would certify."""
    local = await trainer.train(round_, encode_adapter(charter, adapter), None)
    delta = decode_delta(charter, author=FOUNDER.peer, round_=round_, data=local.blob)
    entry = SlateEntry(author=FOUNDER.peer, announcement=b"a" * 32, delta=b"d" * 32, trained_round=round_)
    return merge(charter, adapter, [(entry, delta)], round_)


def poisoned(adapter: Adapter) -> Adapter:
    noise = np.random.default_rng(0).integers(-(2**24), 2**24, adapter.state.shape)
    return Adapter((adapter.state + noise).astype(np.int32))


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_poisoned_adapter_is_followed_but_not_served_also_after_a_restart(tmp_path: Path) -> None:
    base = write_tiny_base(tmp_path)
    charter = charter_for(open_base(base).architecture, steps=12).model_copy(
        update={"founders": (FOUNDER.peer,)}
    )
    signed, home = sign_charter(charter, (FOUNDER,)), tmp_path / "home"
    swarm, genesis = charter.swarm_id, genesis_adapter(charter)
    async with open_worker(WorkerConfig(base=base)) as worker:
        trainer = WorkerTrainer(
            worker=worker,
            charter=charter,
            author=FOUNDER.peer,
            data=write_text(tmp_path),
            seed=0,
            progress=lambda *_: None,
        )
        good = await trained(trainer, charter, genesis, 1)
        bad = poisoned(good)
        better = await trained(trainer, charter, bad, 2)

        with ThreadPoolExecutor(1) as thread:
            store = thread.submit(open_store, home).result()
            thread.submit(store.add_swarm, signed.encode()).result()
            journal = SwarmJournal(store, swarm, thread)
            gate = Gate(journal, trainer.judge, base=encode_adapter(charter, genesis))
            digests = [await journal.put_blob(encode_adapter(charter, each)) for each in (good, bad)]
            for round_, digest in enumerate(digests, start=1):
                await gate.consider(round_, digest)
            assert gate.is_holding_back
            assert gate.served is not None
            assert gate.newest is not None
            assert gate.newest.loss > gate.served.loss + 0.1
            thread.submit(store.close).result()

        with ThreadPoolExecutor(1) as thread:
            store = thread.submit(open_store, home).result()
            journal = SwarmJournal(store, swarm, thread)
            await journal.collect(frozenset())
            kept = await journal.verdicts()
            assert kept is not None
            assert thread.submit(served_adapter, store, swarm).result() == (1, digests[0])
            decode_adapter(charter, await journal.read_blob(digests[0]))
            gate = Gate(
                journal,
                trainer.judge,
                base=encode_adapter(charter, genesis),
                served=kept[0],
                newest=kept[1],
            )
            assert gate.is_holding_back
            # What was trained from the poisoned adapter is still worse than the good one.
            await gate.consider(3, await journal.put_blob(encode_adapter(charter, better)))
            assert thread.submit(served_adapter, store, swarm).result()[0] == 1
            again = await trained(trainer, charter, good, 4)
            await gate.consider(4, await journal.put_blob(encode_adapter(charter, again)))
            assert thread.submit(served_adapter, store, swarm).result()[0] == 4
            assert not gate.is_holding_back
            thread.submit(store.close).result()
