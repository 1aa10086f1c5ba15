"""Measures whether a cheaper gradient changes what LoRA learns on ``nano``.

Usage::

    python deploy/experiments/backward.py run --out backward.jsonl --modes fp32 int8x2 int8 --seeds 0 1 2
    python deploy/experiments/backward.py run --out backward.jsonl --modes int8 --rounded --label NAME
    python deploy/experiments/backward.py table backward.jsonl
    python deploy/experiments/backward.py plot backward.jsonl --out backward.png

One adapter (``fixed``, rank 8, all linears) trains on the four samples together. A seed draws A and the order
of the data; the modes of one seed see the same batches from the same start. A result that already stands in
the file is not measured again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from schemes import SAMPLES, Setting, charter_for

from sterna.train.base import builtin_bases, open_base
from sterna.train.evaluate import held_out_loss
from sterna.train.lora import float_state, lora_of_round
from sterna.train.loss import Head
from sterna.train.model import Decoder, Keeping
from sterna.train.step import train_round
from sterna.train.text import read_split
from sterna.train.tokens import Corpus, TextCodec
from sterna_kernels.torch import Backward
from sterna_protocol.merge.adapter import genesis_adapter

TOKENS = 128
CHECK_STEPS = 50
"""Steps between two checks of the held-out loss."""

CHECK_TOKENS = 2048
"""Held-out tokens of each text that a check reads; the final loss reads them all."""

WINDOW_STEPS = 25
"""The training curve is averaged over so many steps: 6,400 tokens at two sequences a step."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, dest="command")
    run = commands.add_parser("run")
    run.add_argument("--out", type=Path, required=True)
    run.add_argument("--modes", nargs="+", default=list(get_args(Backward)), choices=get_args(Backward))
    run.add_argument("--label", help="names the mode in the file; its own name without it")
    run.add_argument(
        "--rounded", action="store_true", help="keep activations in bfloat16, as a large base does"
    )
    run.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    run.add_argument("--steps", type=int, default=500)
    run.add_argument("--sequences", type=int, default=2)
    run.add_argument("--rate", type=float, default=0.016)
    table = commands.add_parser("table")
    table.add_argument("results", type=Path)
    plot = commands.add_parser("plot")
    plot.add_argument("results", type=Path)
    plot.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.command == "table":
        print_table(read_rows(options.results))
    elif options.command == "plot":
        draw(read_rows(options.results), options.out)
    else:
        run_all(options)


def run_all(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    base = open_base(builtin_bases()["nano"])
    codec = TextCodec(base.tokenizer_json)
    texts = [path for path in sorted(SAMPLES.glob("*.txt")) if not path.stem.isupper()]
    corpora = [codec.corpus(read_split(path), path) for path in texts]
    setting = Setting(
        scheme="fixed",
        rank=8,
        subspaces=1,
        codec="ternary",
        rate=options.rate,
        warmup=4,
        steps=options.steps,
        sequences=options.sequences,
        rounds=1,
    )
    for seed in options.seeds:
        for mode in options.modes:
            label = options.label or mode
            key = {"mode": label, "seed": seed, "setting": setting.name}
            known = read_rows(options.out) if options.out.exists() else []
            if any(all(row[field] == value for field, value in key.items()) for row in known):
                continue
            keeping = Keeping(rounded=options.rounded)
            row = key | train(Decoder(base, backward=mode), Head(base.head), corpora, setting, seed, keeping)
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{label} seed {seed}: {row['final']:.4f}, {row['cpu_seconds']} s", flush=True)


def train(
    decoder: Decoder, head: Head, corpora: Sequence[Corpus], setting: Setting, seed: int, keeping: Keeping
) -> dict[str, Any]:
    """The losses of one run: of each step, held out on the way, held out at the end (nats per token)."""
    charter = charter_for(builtin_bases()["nano"], setting, seed)
    recipe = charter.recipe.model_copy(update={"tokens_per_sequence": TOKENS})
    lora = lora_of_round(charter.adapter, float_state(genesis_adapter(charter)), 0)
    losses: list[float] = []
    checks: list[float] = []

    def on_step(step: int, loss: float) -> None:
        losses.append(round(loss, 4))
        if step % CHECK_STEPS == 0:
            held_out = held_out_loss(decoder, head, lora, corpora, length=TOKENS, limit_tokens=CHECK_TOKENS)
            checks.append(round(held_out.loss, 5))

    started = time.process_time()
    train_round(decoder, head, lora, corpora, recipe, seed=seed, round_=0, keeping=keeping, on_step=on_step)
    seconds = round(time.process_time() - started, 1)
    final = held_out_loss(decoder, head, lora, corpora, length=TOKENS)
    return {"losses": losses, "checks": checks, "final": round(final.loss, 5), "cpu_seconds": seconds}


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def smoothed(row: dict[str, Any]) -> np.ndarray:
    """The training curve, each window of steps averaged."""
    losses = np.array(row["losses"])
    return losses[: losses.size // WINDOW_STEPS * WINDOW_STEPS].reshape(-1, WINDOW_STEPS).mean(axis=1)


def distances(first: dict[str, Any], second: dict[str, Any]) -> tuple[float, float, float]:
    """How far two runs are apart: training curve, held-out curve (mean absolute), final loss (absolute)."""
    checks = np.abs(np.array(first["checks"]) - np.array(second["checks"])).mean()
    training = np.abs(smoothed(first) - smoothed(second)).mean()
    return float(training), float(checks), abs(first["final"] - second["final"])


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Each mode against fp32 of the same seed, and fp32 against itself with another seed: the noise."""
    exact = {row["seed"]: row for row in rows if row["mode"] == "fp32"}
    noise = [distances(exact[a], exact[b]) for a, b in combinations(sorted(exact), 2)]
    titles = ("run", "seeds", "final loss", "final - fp32", "training curve", "held-out curve", "final")
    print("| " + " | ".join(titles) + " |")
    print("|---" * len(titles) + "|")
    finals = [row["final"] for row in exact.values()]
    print(_line("fp32, seed against seed", finals, "", noise))
    for mode in dict.fromkeys(row["mode"] for row in rows):
        if mode == "fp32":
            continue
        mine = [row for row in rows if row["mode"] == mode and row["seed"] in exact]
        signed = statistics.mean(row["final"] - exact[row["seed"]]["final"] for row in mine)
        apart = [distances(row, exact[row["seed"]]) for row in mine]
        print(_line(mode, [row["final"] for row in mine], f"{signed:+.4f}", apart))


def _line(
    name: str, finals: Sequence[float], signed: str, apart: Sequence[tuple[float, float, float]]
) -> str:
    means = [f"{statistics.mean(column):.4f}" for column in zip(*apart, strict=True)]
    cells = [name, str(len(finals)), f"{statistics.mean(finals):.4f}", signed, *means]
    return "| " + " | ".join(cells) + " |"


def draw(rows: Sequence[dict[str, Any]], out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(ncols=2, figsize=(9, 3.6))
    exact = {row["seed"]: np.array(row["checks"]) for row in rows if row["mode"] == "fp32"}
    steps = np.arange(1, len(next(iter(exact.values()))) + 1) * CHECK_STEPS
    pairs = [np.abs(exact[first] - exact[second]) for first, second in combinations(sorted(exact), 2)]
    right.plot(steps, np.mean(pairs, axis=0), color="0.5", linestyle="--", label="fp32, two seeds")
    for number, mode in enumerate(dict.fromkeys(row["mode"] for row in rows)):
        checks = {row["seed"]: np.array(row["checks"]) for row in rows if row["mode"] == mode}
        label = f"{mode} ({len(checks)} seeds)"
        left.plot(steps, np.mean([*checks.values()], axis=0), color=f"C{number}", linewidth=1, label=label)
        if mode != "fp32":
            apart = [np.abs(losses - exact[seed]) for seed, losses in checks.items()]
            right.plot(steps, np.mean(apart, axis=0), color=f"C{number}", linewidth=1, label=mode)
    left.set(xlabel="step", ylabel="held-out loss, mean over seeds")
    right.set(xlabel="step", ylabel="distance to fp32 of the same seed, mean", ylim=(0, None))
    for axes in (left, right):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(out, dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    main()
