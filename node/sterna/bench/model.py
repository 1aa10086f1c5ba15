"""A training step, a prompt, decoding and memory of one shape: ours beside PyTorch with PEFT.

Times: the systems take turns, each in a process of its own; medians. A rival too large for the memory it may
take, or for anybody's patience, is measured with a few layers and with twice as many, and what those added is
added for every layer that is missing. Memory: a fresh process for each system, one step with optimiser.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sterna.bench.process import Answer, Measured
from sterna.bench.random_base import write_random_base
from sterna.bench.shapes import SHAPES
from sterna.errors import ConfigError
from sterna.train.base import Architecture
from sterna.train.memory import (
    KEPT,
    RETURNED,
    ROOMY_FACTOR,
    available_bytes,
    keeps_memory,
    malloc_environment,
)
from sterna_kernels import variants

RIVALS = {
    "bf16": "nn.Linear bf16 + peft",
    "bitnet": "transformers BitNet + peft",
    "fp32": "nn.Linear fp32 + peft",
}
WITHOUT_AMX = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}
"""What keeps oneDNN, so torch, from AMX."""

MEMORY_TOKENS = 128
"""What QVAC's published figures of memory are for."""

MEASURED_LAYERS = 2
"""Layers of a rival that is not measured whole; the second measurement has twice as many."""

DECODED_TOKENS = 8
GIB = float(1 << 30)

JOBS = ("step", "prefill", "decode")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What to measure.

    Attributes:
        tokens: of a step and of the prompt.
        threads: of every system.
        amx: False keeps ours and the rivals from it.
        rival_gib: a rival that needs more is not measured whole.
        whole: False measures a few layers of every rival.
        keep_freed: whether ours holds on to freed memory; None: as a node would on this machine, now.
    """

    shape: str
    tokens: int = 512
    rank: int = 8
    threads: int = 2
    backward: str = "int8"
    repeats: int = 3
    amx: bool = True
    rivals: tuple[str, ...] = ("bf16", "bitnet")
    rival_gib: float = 12.0
    whole: bool = True
    keep_freed: bool | None = None
    times: bool = True
    memory: bool = True


@dataclass(slots=True)
class Figures:
    """One system. Seconds are medians, wall and processor; a token's when decoding.

    Attributes:
        layers: how many were measured; times are for all layers in any case.
        peak_bytes: None where it was not measured.
        least_bytes: its weights alone, for a system whose peak was not measured.
    """

    name: str
    layers: int
    seconds: dict[str, float] = field(default_factory=dict)
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    peak_bytes: int | None = None
    least_bytes: int | None = None
    failed: str | None = None


@dataclass(slots=True)
class ModelReport:
    """Everything about one shape. ``ours`` has the kernels alone as "products" and "products_1"."""

    choices: Choices
    base_bytes: int
    ours: Figures
    rivals: dict[str, Figures]
    open_seconds: float = 0.0
    second_process: Answer = field(default_factory=dict)


def measure_model(choices: Choices, say: Callable[[str], None]) -> ModelReport:
    """Write a random base to a scratch folder, measure, and delete it.

    Raises:
        ConfigError: there is no such shape or rival, or our own measured process failed.
        StorageError: the base cannot be written.
    """
    if choices.shape not in SHAPES:
        raise ConfigError(f"shape {choices.shape!r}: choose one of {', '.join(SHAPES)}")
    if unknown := set(choices.rivals) - set(RIVALS):
        raise ConfigError(f"rival {min(unknown)!r}: choose from {', '.join(RIVALS)}")
    architecture = SHAPES[choices.shape]
    with tempfile.TemporaryDirectory(prefix="sterna-bench-") as folder:
        path = Path(folder) / f"{choices.shape}.sterna"
        say(f"writing random weights of shape {choices.shape}")
        write_random_base(path, architecture, name=choices.shape)
        report = ModelReport(
            choices=choices,
            base_bytes=path.stat().st_size,
            ours=Figures("sterna", architecture.layers),
            rivals={},
        )
        if choices.memory:
            _measure_memory(report, path, say)
        if choices.times:
            _measure_times(report, path, say)
    return report


def _measure_memory(report: ModelReport, path: Path, say: Callable[[str], None]) -> None:
    choices, layers = report.choices, report.ours.layers
    say("memory of sterna")
    with _ours(choices, path) as ours:
        report.open_seconds = ours.ready["open_seconds"]
        ours.ask("step", tokens=MEMORY_TOKENS)
        report.ours.peak_bytes = ours.ask("memory")["peak_bytes"]
        # A page counts for a process once it has looked at it.
        ours.ask("touch")
        with _ours(choices, path) as second:
            second.ask("touch")
            report.second_process = second.ask("memory")
    for kind in _present(choices):
        figures = report.rivals.setdefault(kind, Figures(RIVALS[kind], layers))
        figures.least_bytes = _weight_bytes(SHAPES[choices.shape], kind)
        if not choices.whole or figures.least_bytes > choices.rival_gib * GIB:
            continue
        say(f"memory of {RIVALS[kind]}")
        try:
            with _rival(choices, kind, layers) as rival:
                rival.ask("step", tokens=MEMORY_TOKENS)
                figures.peak_bytes = rival.ask("memory")["peak_bytes"]
        except ConfigError as error:
            figures.failed = str(error)


def _measure_times(report: ModelReport, path: Path, say: Callable[[str], None]) -> None:
    choices = report.choices
    with _ours(choices, path) as ours:
        report.open_seconds = ours.ready["open_seconds"]
        report.ours.facts = dict(ours.ready)
        turns: dict[str, list[Answer]] = {job: [] for job in (*JOBS, "products", "products_1")}
        _warm(ours, choices)
        for kind in _present(choices):
            say(f"times of {RIVALS[kind]}")
            figures = report.rivals.setdefault(kind, Figures(RIVALS[kind], report.ours.layers))
            try:
                _take_turns(report, kind, figures, ours, turns)
            except ConfigError as error:
                figures.failed = str(error)
        if not turns["step"]:
            say("times of sterna")
            for _ in range(choices.repeats):
                _our_turn(ours, choices, turns)
        report.ours.facts |= {k: turns["step"][-1][k] for k in ("rounded", "layers_recomputed")}
    for job, answers in turns.items():
        report.ours.seconds[job], report.ours.cpu_seconds[job] = _medians(answers)


def _take_turns(
    report: ModelReport, kind: str, figures: Figures, ours: Measured, turns: dict[str, list[Answer]]
) -> None:
    choices, layers = report.choices, report.ours.layers
    # Activations, logits and gradients of a step take about as much again as a third of the weights.
    needed = _weight_bytes(SHAPES[choices.shape], kind) * 4 / 3
    few = min(MEASURED_LAYERS, layers // 2)
    whole = few == 0 or (choices.whole and needed <= choices.rival_gib * GIB)
    sizes = (layers,) if whole else (few, 2 * few)
    figures.layers = sizes[-1]
    processes = [_rival(choices, kind, size) for size in sizes]
    answers: list[dict[str, list[Answer]]] = [{job: [] for job in JOBS} for _ in sizes]
    try:
        for process in processes:
            _warm(process, choices)
        for _ in range(choices.repeats):
            _our_turn(ours, choices, turns)
            for process, found in zip(processes, answers, strict=True):
                for job in JOBS:
                    found[job].append(process.ask(job, tokens=_tokens(job, choices)))
    finally:
        for process in processes:
            process.close()
    for job in JOBS:
        pairs = [_medians(found[job]) for found in answers]
        for where, pick in ((figures.seconds, 0), (figures.cpu_seconds, 1)):
            first, last = pairs[0][pick], pairs[-1][pick]
            rate = 0.0 if whole else (last - first) / (sizes[-1] - sizes[0])
            where[job] = last + rate * (layers - sizes[-1])


def _our_turn(ours: Measured, choices: Choices, turns: dict[str, list[Answer]]) -> None:
    for job in JOBS:
        turns[job].append(ours.ask(job, tokens=_tokens(job, choices)))
    turns["products"].append(ours.ask("products", tokens=choices.tokens))
    turns["products_1"].append(ours.ask("products", tokens=1, repeats=DECODED_TOKENS))


def _warm(process: Measured, choices: Choices) -> None:
    # transformers decodes with its model as it is before PEFT wraps it in the first step.
    process.ask("decode", tokens=1)
    process.ask("step", tokens=choices.tokens)


def _tokens(job: str, choices: Choices) -> int:
    return DECODED_TOKENS if job == "decode" else choices.tokens


def _medians(answers: list[Answer]) -> tuple[float, float]:
    shared_by = [answer.get("tokens", 1) for answer in answers]
    wall = [answer["seconds"] / by for answer, by in zip(answers, shared_by, strict=True)]
    cpu = [answer["cpu_seconds"] / by for answer, by in zip(answers, shared_by, strict=True)]
    return statistics.median(wall), statistics.median(cpu)


def _present(choices: Choices) -> list[str]:
    there = all(find_spec(package) is not None for package in ("transformers", "peft"))
    return [kind for kind in RIVALS if kind in choices.rivals and there]


def _weight_bytes(architecture: Architecture, kind: str) -> int:
    a = architecture
    rows = a.vocab_size * a.hidden_size * (1 if a.tied_embeddings else 2)
    count = rows + sum(out * in_ for _, out, in_ in a.linears())
    return count * (4 if kind == "fp32" else 2)


def _ours(choices: Choices, path: Path) -> Measured:
    variant = "" if choices.amx else next(name for name in variants() if name != "amx")
    base_bytes = path.stat().st_size
    free = {None: available_bytes(), True: ROOMY_FACTOR * base_bytes, False: 0}[choices.keep_freed]
    return Measured(
        "sterna.bench.ours",
        str(path),
        str(choices.rank),
        str(choices.threads),
        variant,
        choices.backward,
        KEPT if keeps_memory(base_bytes, free) else RETURNED,
        environment=_environment(choices) | malloc_environment(base_bytes, free),
    )


def _rival(choices: Choices, kind: str, layers: int) -> Measured:
    return Measured(
        "sterna.bench.rivals",
        choices.shape,
        str(layers),
        kind,
        str(choices.rank),
        str(choices.threads),
        environment=_environment(choices),
    )


def _environment(choices: Choices) -> dict[str, str]:
    """The same for all systems."""
    return {
        "OMP_NUM_THREADS": str(choices.threads),
        "OMP_WAIT_POLICY": "passive",
        **({} if choices.amx else WITHOUT_AMX),
    }
