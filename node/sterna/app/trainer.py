"""The worker as the driver sees it: one swarm, one data file, one round at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sterna.swarm.ports import LocalDelta
from sterna.train.worker import Progress, Worker
from sterna_protocol.merge.feedback import Unsent
from sterna_protocol.swarm.charter import Charter


@dataclass(frozen=True, slots=True)
class WorkerTrainer:
    """``sterna.swarm.ports.Trainer`` over a worker process."""

    worker: Worker
    charter: Charter
    author: bytes
    data: Path
    seed: int
    progress: Progress

    async def train(self, round_: int, adapter: bytes, unsent: Unsent | None) -> LocalDelta:
        trained = await self.worker.train(
            charter=self.charter,
            adapter=adapter,
            round_=round_,
            author=self.author,
            data=self.data,
            # Another order of the data in every round, the same when a round is trained again.
            seed=self.seed + round_,
            unsent=unsent,
            on_progress=self.progress,
        )
        return LocalDelta(trained.delta_blob, trained.figures, trained.total)
