"""The training process for real: jobs, progress, cancelling, and its death in the middle of one."""

import asyncio
import contextlib
import os
import signal

import pytest
import pytest_asyncio

from sterna.errors import ConfigError, DataError, StorageError, WorkerFailed
from sterna.train.base import builtin_bases, open_base
from sterna.train.text import Turn
from sterna.train.worker import WorkerConfig, open_worker
from sterna_protocol.merge.adapter import encode_adapter, genesis_adapter
from sterna_protocol.merge.codec import decode_delta
from tests.node.train.tiny import charter_for, write_text, write_tiny_base

pytestmark = [pytest.mark.real, pytest.mark.slow]

AUTHOR = bytes(range(32))


class Scene:
    """A worker over a tiny base, and the arguments of its jobs."""

    def __init__(self, folder, worker, base):
        self.folder = folder
        self.worker = worker
        self.data = write_text(folder)
        self.shape = open_base(base).architecture

    def job(self, *, steps=2, **changes):
        charter = charter_for(self.shape, steps=steps)
        adapter = encode_adapter(charter, genesis_adapter(charter))
        arguments = {"charter": charter, "adapter": adapter, "round_": 0, "author": AUTHOR, "data": self.data}
        return arguments | {"seed": 1} | changes


@pytest_asyncio.fixture
async def scene(tmp_path):
    base = write_tiny_base(tmp_path)
    async with open_worker(WorkerConfig(base=base)) as worker:
        yield Scene(tmp_path, worker, base)


@pytest.mark.asyncio
async def test_jobs_of_every_kind(scene):
    job = scene.job()
    seen = []
    trained = await scene.worker.train(**job, on_progress=lambda *what: seen.append(what))
    assert [what[:2] for what in seen] == [(1, 2), (2, 2)]
    decode_delta(job["charter"], author=AUTHOR, round_=0, data=trained.delta_blob)
    assert trained.figures.steps == 2
    assert trained.figures.tokens > 0
    assert trained.figures.loss_before_micronats == round(trained.loss_before * 1e6)

    path = scene.folder / "adapter"
    path.write_bytes(job["adapter"])
    again = await scene.worker.train(**(job | {"adapter": path}))
    assert again.delta_blob == trained.delta_blob

    judged = await scene.worker.evaluate(
        charter=job["charter"], adapter=None, held_out=[scene.data, scene.data]
    )
    assert judged.by_file == (judged.loss, judged.loss)
    assert judged.loss == pytest.approx(trained.loss_before)

    alone = await scene.worker.train_alone(
        charter=job["charter"], rounds=2, data=[scene.data], held_out=[scene.data], seed=1
    )
    assert len(alone.loss_by_round) == 1
    assert alone.loss_by_round[-1] < judged.loss

    pieces = [piece async for piece in scene.worker.generate(prompt="tern", max_tokens=5, seed=1)]
    answer = scene.worker.generate(
        prompt=[Turn("user", "hi")], charter=job["charter"], adapter=job["adapter"], max_tokens=5, seed=1
    )
    assert pieces
    assert [piece async for piece in answer]


@pytest.mark.asyncio
@pytest.mark.parametrize("scales", ["row", "group", "planes"])
async def test_a_base_with_other_scales_or_two_planes_trains_and_answers(tmp_path, scales):
    base = write_tiny_base(tmp_path, scales=scales, hidden_size=64, ffn_size=128)
    async with open_worker(WorkerConfig(base=base)) as worker:
        scene = Scene(tmp_path, worker, base)
        job = scene.job(steps=4)
        trained = await worker.train(**job)
        assert trained.loss_after < trained.loss_before
        decode_delta(job["charter"], author=AUTHOR, round_=0, data=trained.delta_blob)
        answer = worker.generate(
            prompt="tern", charter=job["charter"], adapter=job["adapter"], max_tokens=5, seed=1
        )
        assert [piece async for piece in answer]


@pytest.mark.asyncio
async def test_a_killed_process_fails_its_job_and_the_next_job_gets_a_fresh_one(scene):
    first = scene.worker.pid
    with pytest.raises(WorkerFailed, match=r"the training process was killed by signal 9"):
        await scene.worker.train(
            **scene.job(steps=1000), on_progress=lambda *_: os.kill(scene.worker.pid, signal.SIGKILL)
        )
    assert (await scene.worker.train(**scene.job())).figures.steps == 2
    assert scene.worker.pid not in (None, first)


@pytest.mark.asyncio
async def test_a_cancelled_job_ends_and_its_process_takes_the_next(scene):
    first = scene.worker.pid
    started = asyncio.Event()
    task = asyncio.create_task(
        scene.worker.train(**scene.job(steps=100_000), on_progress=lambda *_: started.set())
    )
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await scene.worker.train(**scene.job())).figures.steps == 2
    async with contextlib.aclosing(scene.worker.generate(prompt="a", max_tokens=60)) as pieces:
        async for _ in pieces:
            break
    assert (await scene.worker.train(**scene.job())).figures.steps == 2
    assert scene.worker.pid == first


@pytest.mark.asyncio
async def test_jobs_wait_for_each_other(scene):
    job = scene.job()
    first, second = await asyncio.gather(scene.worker.train(**job), scene.worker.train(**job))
    assert first.delta_blob == second.delta_blob


@pytest.mark.asyncio
async def test_refusals_come_back_as_they_are_and_the_process_lives_on(scene):
    first = scene.worker.pid
    bad = scene.folder / "bad.jsonl"
    bad.write_text("{}\n")
    with pytest.raises(DataError, match=r"bad\.jsonl:1: has no field"):
        await scene.worker.train(**scene.job(data=bad))
    with pytest.raises(WorkerFailed, match="adapter of 3 bytes, expected"):
        await scene.worker.train(**scene.job(adapter=b"abc"))
    with pytest.raises(ConfigError, match="none: cannot be read"):
        await scene.worker.train(**scene.job(adapter=scene.folder / "none"))
    with pytest.raises(WorkerFailed, match="TypeError"):
        await scene.worker.train(**scene.job(round_="x"))
    with pytest.raises(ConfigError, match="temperature -1"):
        _ = [piece async for piece in scene.worker.generate(prompt="a", temperature=-1.0)]
    assert (await scene.worker.train(**scene.job())).figures.steps == 2
    assert scene.worker.pid == first


@pytest.mark.asyncio
async def test_a_base_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(StorageError, match=r"none\.sterna: cannot be read"):
        async with open_worker(WorkerConfig(base=tmp_path / "none.sterna")):
            pass
    (tmp_path / "bad.sterna").write_bytes(b"no base")
    with pytest.raises(ConfigError, match="not a base file"):
        async with open_worker(WorkerConfig(base=tmp_path / "bad.sterna")):
            pass


@pytest.mark.asyncio
async def test_a_step_on_the_shipped_base(tmp_path):
    base = builtin_bases()["nano"]
    async with open_worker(WorkerConfig(base=base)) as worker:
        charter = charter_for(open_base(base).architecture, steps=2, length=32, codec="ternary")
        adapter = encode_adapter(charter, genesis_adapter(charter))
        trained = await worker.train(
            charter=charter, adapter=adapter, round_=0, author=AUTHOR, data=write_text(tmp_path), seed=0
        )
        assert trained.loss_after < trained.loss_before
