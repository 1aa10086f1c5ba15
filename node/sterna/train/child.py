"""The spawned process that trains: one job after another over the pipe to its parent.

    parent -> child   {"job": id, "kind": "train" | "train_alone" | "evaluate" | "generate", ...}
                      {"cancel": id}
    child -> parent   {"ready": true} | {"failed": kind, "text": ...}      once, after the base is open
                      {"job": id, "accepted": true}
                      {"job": id, "progress": [done, in all, loss]} | {"job": id, "piece": text}
                      {"job": id, "done": {...}} | {"job": id, "failed": kind, "text": ...}

``kind`` of a failure is the name of an exception in sterna.errors.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch

from sterna.errors import ConfigError, NodeError, WorkerFailed
from sterna.pipe import Message, ParentPipe, connect_parent
from sterna.train.evaluate import HeldOutLoss
from sterna.train.jobs import Workshop
from sterna.train.memory import RETURNED
from sterna.train.text import Turn
from sterna_kernels.torch import Backward
from sterna_protocol.errors import ProtocolError
from sterna_protocol.merge.feedback import Unsent
from sterna_protocol.swarm.charter import Charter

logger = logging.getLogger(__name__)


class _Cancelled(Exception):
    """The parent no longer wants the job."""


def main() -> int:
    """Serve jobs until the parent is gone; the exit code."""
    pipe = connect_parent()
    base, threads, backward, activation_bytes, memory = sys.argv[2:]
    torch.set_num_threads(int(threads))
    try:
        workshop = Workshop(
            Path(base),
            backward=cast(Backward, backward),
            activation_bytes=int(activation_bytes),
            returns_pages=memory == RETURNED,
        )
    except NodeError as error:
        pipe.send({"failed": type(error).__name__, "text": str(error)})
        return 1
    pipe.send({"ready": True})
    while (message := pipe.receive()) is not None:
        if "job" in message:
            _serve(pipe, workshop, message)
    return 0


def _serve(pipe: ParentPipe, workshop: Workshop, message: Message) -> None:
    job = message["job"]
    pipe.send({"job": job, "accepted": True})

    def tell(what: Message) -> None:
        while (asked := pipe.receive_nowait()) is not None:
            if asked.get("cancel") == job:
                raise _Cancelled
        pipe.send({"job": job, **what})

    try:
        pipe.send({"job": job, "done": _JOBS[message["kind"]](workshop, message, tell)})
    except _Cancelled:
        pipe.send({"job": job, "failed": "Cancelled", "text": ""})
    except (NodeError, ProtocolError) as error:
        kind = type(error) if isinstance(error, NodeError) else WorkerFailed
        pipe.send({"job": job, "failed": kind.__name__, "text": str(error)})
    # The process boundary: whatever a job stumbles over is told to the parent in one line, and the process
    # can serve the next job. EOFError means that there is no parent.
    except EOFError:
        raise SystemExit(0) from None
    except Exception as error:
        logger.exception("job.failed", extra={"kind": message["kind"]})
        text = f"{type(error).__name__}: {error}".splitlines()[0][:500]
        pipe.send({"job": job, "failed": WorkerFailed.__name__, "text": text})
    _return_memory()


def _train(workshop: Workshop, message: Message, tell: Callable[[Message], None]) -> Message:
    result = workshop.train(
        Charter.decode(message["charter"]),
        _adapter(message),
        round_=message["round"],
        author=message["author"],
        data=Path(message["data"]),
        seed=message["seed"],
        unsent=Unsent(*message["unsent"]) if message["unsent"] is not None else None,
        progress=_progress(tell),
    )
    return {
        "delta": result.delta_blob,
        "total": result.total,
        "steps": result.trained.steps,
        "tokens": result.trained.tokens,
        "loss_before": result.loss_before,
        "loss_after": result.loss_after,
        "milliseconds": result.milliseconds,
    }


def _train_alone(workshop: Workshop, message: Message, tell: Callable[[Message], None]) -> Message:
    losses = workshop.train_alone(
        Charter.decode(message["charter"]),
        rounds=message["rounds"],
        data=[Path(path) for path in message["data"]],
        held_out=[Path(path) for path in message["held_out"]],
        seed=message["seed"],
        sequences_factor=message["sequences_factor"],
        every_round=message["every_round"],
        progress=_progress(tell),
    )
    return {"rounds": [_loss(loss) for loss in losses]}


def _evaluate(workshop: Workshop, message: Message, tell: Callable[[Message], None]) -> Message:
    adapter = _adapter(message) if message["adapter"] is not None else None
    held_out = [Path(path) for path in message["held_out"]]
    charter, limit_tokens = Charter.decode(message["charter"]), message["limit_tokens"]
    return _loss(workshop.evaluate(charter, adapter, held_out, limit_tokens=limit_tokens))


def _generate(workshop: Workshop, message: Message, tell: Callable[[Message], None]) -> Message:
    prompt = message["prompt"]
    pieces = workshop.generate(
        Charter.decode(message["charter"]) if message["charter"] is not None else None,
        _adapter(message) if message["adapter"] is not None else None,
        prompt if isinstance(prompt, str) else [Turn(role=role, content=content) for role, content in prompt],
        given=Path(message["given"]) if message["given"] is not None else None,
        max_tokens=message["max_tokens"],
        temperature=message["temperature"],
        top_p=message["top_p"],
        seed=message["seed"],
    )
    for piece in pieces:
        tell({"piece": piece})
    return {}


_JOBS: dict[str, Callable[[Workshop, Message, Callable[[Message], None]], Message]] = {
    "train": _train,
    "train_alone": _train_alone,
    "evaluate": _evaluate,
    "generate": _generate,
}


def _adapter(message: Message) -> bytes:
    adapter = message["adapter"]
    if isinstance(adapter, bytes):
        return adapter
    try:
        return Path(adapter).read_bytes()
    except OSError as error:
        raise ConfigError(f"{adapter}: cannot be read: {error.strerror or error}") from error


def _loss(loss: HeldOutLoss) -> Message:
    return {"loss": loss.loss, "tokens": loss.tokens, "by_file": list(loss.by_file)}


def _progress(tell: Callable[[Message], None]) -> Callable[[int, int, float], None]:
    def report(done: int, in_all: int, loss: float) -> None:
        tell({"progress": [done, in_all, loss]})

    return report


def _return_memory() -> None:
    """Give freed memory back to the system; glibc keeps it otherwise."""
    gc.collect()
    trim: Any = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


if __name__ == "__main__":
    sys.exit(main())
