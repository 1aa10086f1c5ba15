"""What the swarm gained: losses of the base, of the merged adapter and of each peer's training alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sterna.train.worker import Worker, WorkerConfig, open_worker
from sterna_protocol.swarm.charter import Charter


@dataclass(frozen=True, slots=True)
class Losses:
    """Nats per token on held-out text; ``by_text`` follows the order of the data files."""

    union: float
    by_text: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Gains:
    """Everything the loss table shows."""

    base: Losses
    swarm: Losses
    alone: tuple[float, ...]
    sample_before: str
    sample_after: str


async def measure_gains(
    *,
    base: Path,
    charter: Charter,
    adapter: bytes,
    data: Sequence[Path],
    rounds: int,
    seed: int,
    prompt: str,
    sample_tokens: int,
    workers: int,
    note: Callable[[str], None],
) -> Gains:
    """Measure with ``workers`` processes at once, each on one thread."""
    todo = list(enumerate(data))
    alone: dict[int, float] = {}

    async def train_alone(worker: Worker) -> None:
        while todo:
            index, path = todo.pop(0)
            note(f"training alone for comparison: {path.stem}")
            result = await worker.train_alone(
                charter=charter, rounds=rounds, data=[path], held_out=list(data), seed=seed + index
            )
            alone[index] = result.loss_by_round[-1]

    async def own_worker() -> None:
        async with open_worker(WorkerConfig(base=base)) as worker:
            await train_alone(worker)

    async with open_worker(WorkerConfig(base=base)) as worker, asyncio.TaskGroup() as group:
        for _ in range(workers - 1):
            group.create_task(own_worker())
        note("measuring held-out losses")
        before = await worker.evaluate(charter=charter, adapter=None, held_out=list(data))
        after = await worker.evaluate(charter=charter, adapter=adapter, held_out=list(data))
        samples = [
            "".join(
                [
                    piece
                    async for piece in worker.generate(
                        charter=charter,
                        adapter=adapted,
                        prompt=prompt,
                        max_tokens=sample_tokens,
                        temperature=0.7,
                        seed=seed,
                    )
                ]
            )
            for adapted in (None, adapter)
        ]
        await train_alone(worker)
    return Gains(
        base=Losses(before.loss, before.by_file),
        swarm=Losses(after.loss, after.by_file),
        alone=tuple(alone[index] for index in range(len(data))),
        sample_before=samples[0],
        sample_after=samples[1],
    )
