"""The node's side of the training process: jobs go out, progress and results come back. Knows no torch."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sterna import errors
from sterna.errors import NodeError, WorkerFailed
from sterna.pipe import Child, ChildDied, Message, start_child
from sterna.train.base import open_base
from sterna.train.memory import KEPT, RETURNED, available_bytes, keeps_memory, malloc_environment
from sterna.train.text import Turn
from sterna_protocol.merge.feedback import Unsent
from sterna_protocol.swarm.charter import Charter
from sterna_protocol.wire.messages import Figures

logger = logging.getLogger(__name__)

CHILD_MODULE = "sterna.train.child"

START_SECONDS = 120.0
"""Importing torch takes two seconds on an idle laptop, and far longer from a cold disk."""

ACCEPT_SECONDS = 30.0
"""How long a cancelled job may run on before its process is replaced: one step of a large base."""

Progress = Callable[[int, int, float], None]
"""Called with (steps done, steps in all, loss of the last step in nats per token)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """How the training process runs.

    Attributes:
        threads: of torch and the kernels.
        backward: how gradients of activations are held between ternary products; one int8 limb cannot be
            told from float32 in the loss curve (docs/experiments/backward.md).
        activation_bytes: what layers may keep for the backward pass; beyond it they recompute.
    """

    base: Path
    threads: int = 1
    backward: Literal["int8", "int8x2", "fp32"] = "int8"
    activation_bytes: int = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A trained round. Losses are nats per token on the peer's own held-out text.

    ``total``: all there was to send, where the codec leaves something out (sterna_protocol.merge.feedback).
    """

    delta_blob: bytes
    total: bytes | None
    figures: Figures
    loss_before: float
    loss_after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """Nats per token over all held-out files together, and of each alone."""

    loss: float
    tokens: int
    by_file: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """Held-out loss in nats per token without a swarm.

    Attributes:
        loss_by_round: after each round that was judged, the last one last; before training first if all were.
        by_file: of the last round, for each held-out file.
    """

    loss_by_round: tuple[float, ...]
    by_file: tuple[float, ...]


class Worker:
    """One training process, started when a job needs it, also after it died. One job at a time."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._child: Child | None = None
        self._lock = asyncio.Lock()
        self._ids = itertools.count(1)

    @property
    def pid(self) -> int | None:
        """The process id of the running child."""
        return self._child.pid if self._child is not None else None

    async def train(
        self,
        *,
        charter: Charter,
        adapter: bytes | Path,
        round_: int,
        author: bytes,
        data: Path,
        seed: int,
        unsent: Unsent | None = None,
        on_progress: Progress | None = None,
    ) -> Trained:
        """Train one round from the certified adapter and return the delta.

        Args:
            adapter: the encoded adapter blob, or the path of one.
            author: our 32-byte peer id; the delta names it.
            seed: shuffles the data, together with the round.
            unsent: what earlier deltas of this subspace left out.

        Raises:
            DataError: the data cannot be trained on; nothing was trained.
            ConfigError: charter and base do not fit together.
            WorkerFailed: the process died, or the training diverged.
        """
        done = await self._run(
            {
                "kind": "train",
                "charter": charter.encode(),
                "adapter": _sent(adapter),
                "round": round_,
                "author": author,
                "data": str(data),
                "seed": seed,
                "unsent": None if unsent is None else [unsent.round_, unsent.total, unsent.sent],
            },
            on_progress,
        )
        return Trained(
            delta_blob=done["delta"],
            total=done["total"],
            figures=Figures(
                loss_before_micronats=round(1e6 * done["loss_before"]),
                loss_after_micronats=round(1e6 * done["loss_after"]),
                steps=done["steps"],
                tokens=done["tokens"],
                milliseconds=done["milliseconds"],
            ),
            loss_before=done["loss_before"],
            loss_after=done["loss_after"],
        )

    async def train_alone(
        self,
        *,
        charter: Charter,
        rounds: int,
        data: Sequence[Path],
        held_out: Sequence[Path],
        seed: int,
        sequences_factor: int = 1,
        every_round: bool = False,
        on_progress: Progress | None = None,
    ) -> Alone:
        """Train the same steps without the others: float32 state, nothing quantised, subspaces in turn.

        With everybody's data and ``sequences_factor`` = number of peers it is the centralised run. Judging
        ``every_round`` reads the held-out text that often.

        Raises:
            DataError, ConfigError, WorkerFailed: as ``train``.
        """
        done = await self._run(
            {
                "kind": "train_alone",
                "charter": charter.encode(),
                "rounds": rounds,
                "data": [str(path) for path in data],
                "held_out": [str(path) for path in held_out],
                "seed": seed,
                "sequences_factor": sequences_factor,
                "every_round": every_round,
            },
            on_progress,
        )
        return Alone(
            loss_by_round=tuple(entry["loss"] for entry in done["rounds"]),
            by_file=tuple(done["rounds"][-1]["by_file"]),
        )

    async def evaluate(
        self,
        *,
        charter: Charter,
        adapter: bytes | Path | None,
        held_out: Sequence[Path],
        limit_tokens: int | None = None,
    ) -> Evaluated:
        """The held-out loss of the adapter, or without one of the base.

        ``limit_tokens``: of each file at most about so many are read.

        Raises:
            DataError, ConfigError, WorkerFailed: as ``train``.
        """
        done = await self._run(
            {
                "kind": "evaluate",
                "charter": charter.encode(),
                "adapter": _sent(adapter),
                "held_out": [str(path) for path in held_out],
                "limit_tokens": limit_tokens,
            },
            None,
        )
        return Evaluated(loss=done["loss"], tokens=done["tokens"], by_file=tuple(done["by_file"]))

    async def generate(
        self,
        *,
        prompt: str | Sequence[Turn],
        charter: Charter | None = None,
        adapter: bytes | Path | None = None,
        given: Path | None = None,
        max_tokens: int = 128,
        temperature: float = 0.8,
        top_p: float = 0.95,
        seed: int = 0,
    ) -> AsyncIterator[str]:
        """Pieces of text as they are made. Leaving the iterator ends the job.

        Args:
            prompt: a text to continue, or a conversation to answer.
            given: a file of an adapter (``sterna.train.given``), instead of a charter and its adapter.

        Raises:
            ConfigError: the prompt does not fit the base's context, or charter or file and base do not fit
                together.
            WorkerFailed: the process died.
        """
        message = {
            "kind": "generate",
            "charter": charter.encode() if charter is not None else None,
            "adapter": _sent(adapter),
            "given": _sent(given),
            "prompt": prompt if isinstance(prompt, str) else [[turn.role, turn.content] for turn in prompt],
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
        }
        async with self._lock, self._answers(message) as answers:
            async for answer in answers:
                if "piece" in answer:
                    yield answer["piece"]

    async def close(self) -> None:
        """End the process; a running job ends with it."""
        child, self._child = self._child, None
        if child is not None:
            await child.close(kill=True)

    async def _run(self, message: Message, on_progress: Progress | None) -> Message:
        async with self._lock, self._answers(message) as answers:
            async for answer in answers:
                if "progress" in answer and on_progress is not None:
                    on_progress(*answer["progress"])
                if "done" in answer:
                    done: Message = answer["done"]
                    return done
        raise WorkerFailed("the training process ended its job without a result")

    @asynccontextmanager
    async def _answers(self, message: Message) -> AsyncIterator[AsyncIterator[Message]]:
        """Start a job; the frames about it, the last one with "done". Cancels the job when left early."""
        child = await self._ready_child()
        job = next(self._ids)
        finished = False

        async def answers() -> AsyncIterator[Message]:
            nonlocal finished
            while not finished:
                answer = await child.receive()
                if answer.get("job") != job:
                    continue  # the rest of a cancelled job
                finished = "done" in answer or "failed" in answer
                if "failed" in answer:
                    raise _failure(answer)
                yield answer

        stream = answers()
        try:
            await child.send({"job": job, **message})
            # The child answers as soon as it is free: a cancelled job may still be in its last step.
            async with asyncio.timeout(ACCEPT_SECONDS):
                await anext(stream)
            yield stream
        except ChildDied as died:
            finished = True
            self._child = None
            raise WorkerFailed(f"the training process {died}") from died
        except TimeoutError as late:
            finished = True
            self._child = None
            await child.close(kill=True)
            raise WorkerFailed(
                f"the training process did not take a job for {ACCEPT_SECONDS:.0f} s"
            ) from late
        except ValueError as large:  # from child.send
            finished = True
            raise WorkerFailed(f"{large}; give the path of the adapter instead of its bytes") from large
        finally:
            await stream.aclose()  # type: ignore[attr-defined]
            if not finished:
                await self._cancel(child, job)

    async def _cancel(self, child: Child, job: int) -> None:
        try:
            async with asyncio.timeout(ACCEPT_SECONDS):
                await child.send({"cancel": job})
        except (ChildDied, TimeoutError):
            # Nobody listens; the next job starts with a fresh process.
            self._child = None
            await child.close(kill=True)

    async def _ready_child(self) -> Child:
        if self._child is not None:
            return self._child
        config = self._config
        base_bytes, free_bytes = config.base.stat().st_size, available_bytes()
        child = await start_child(
            CHILD_MODULE,
            str(config.base),
            str(config.threads),
            config.backward,
            str(config.activation_bytes),
            KEPT if keeps_memory(base_bytes, free_bytes) else RETURNED,
            environment={
                "OMP_NUM_THREADS": str(config.threads),
                "RAYON_NUM_THREADS": str(config.threads),  # the tokenizer's
                # Waiting threads that spin would take the core from the other processes of this machine.
                "OMP_WAIT_POLICY": "passive",
                **malloc_environment(base_bytes, free_bytes),
            },
        )
        try:
            async with asyncio.timeout(START_SECONDS):
                hello = await child.receive()
        except (ChildDied, TimeoutError) as died:
            await child.close(kill=True)
            why = str(died) or f"did not start in {START_SECONDS:.0f} s"
            raise WorkerFailed(f"the training process {why}") from died
        except BaseException:
            await child.close(kill=True)
            raise
        if "failed" in hello:
            await child.close()
            raise _failure(hello)
        logger.info("worker.started", extra={"pid": child.pid})
        self._child = child
        return child


@asynccontextmanager
async def open_worker(config: WorkerConfig) -> AsyncIterator[Worker]:
    """A worker whose process is up and has opened the base; it ends when the context is left.

    Raises:
        ConfigError, StorageError: the base cannot be opened.
        WorkerFailed: the process does not start.
    """
    # Says what is wrong with a base without waiting for a process to load torch.
    open_base(config.base)
    worker = Worker(config)
    try:
        await worker._ready_child()
        yield worker
    finally:
        await worker.close()


def _sent(adapter: bytes | Path | None) -> bytes | str | None:
    return str(adapter) if isinstance(adapter, Path) else adapter


def _failure(answer: Message) -> NodeError:
    kind: Any = getattr(errors, answer["failed"], WorkerFailed)
    failure: NodeError = kind(answer["text"])
    return failure
