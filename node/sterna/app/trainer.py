"""The worker as the driver sees it: one swarm, one data file, one round at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sterna.swarm.ports import LocalDelta
from sterna.train.worker import Progress, Worker
from sterna_protocol.merge.feedback import Unsent
from sterna_protocol.swarm.charter import Charter

JUDGED_TOKENS = 8192
"""Held-out tokens behind a verdict. Old and new adapter read the same ones, so that their difference is far
sharper than either loss; a fifth of what a round trains on, and read without a backward pass."""


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

    async def judge(self, adapter: bytes) -> float:
        """The loss of ``adapter`` on this node's own hold-out text, nats per token; raises a NodeError."""
        judged = await self.worker.evaluate(
            charter=self.charter, adapter=adapter, held_out=[self.data], limit_tokens=JUDGED_TOKENS
        )
        return judged.loss
