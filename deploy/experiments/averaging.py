"""Measures adapter schemes, delta codecs and outer steps beside each other: held-out loss against bytes.

Usage::

    python deploy/experiments/averaging.py tune --out rates.jsonl --rounds 5
    python deploy/experiments/averaging.py try --rates rates.jsonl --out tried.jsonl --steps 5 --seeds 100
    python deploy/experiments/averaging.py run --rates rates.jsonl --out averaging.jsonl --steps 5
    python deploy/experiments/averaging.py table averaging.jsonl --clients 4
    python deploy/experiments/averaging.py plot averaging.jsonl --out averaging.png

Each of the four samples is cut into five parts of consecutive documents. Learning rates are tuned on the
fifth parts, training and held-out documents alike, and ideas are tried there; everything reported comes from
the other four. Four clients hold one text each, sixteen hold one part each. Losses are nats per token over
the held-out documents of all four texts, the same for any number of clients.

A result that already stands in a file is not measured again. The trials are in averaging_trials.py, how one
is learnt in averaging_learning.py, table and plot in averaging_shown.py.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from averaging_directions import Directions, input_directions
from averaging_learning import BASE, TOKENS, Run, decoder, judge, learn
from averaging_shown import draw, print_table
from averaging_trials import TRIALS, Trial
from schemes import SAMPLES

from sterna.train.base import open_base
from sterna.train.text import read_documents, split_documents
from sterna.train.tokens import Corpus, TextCodec

PARTS = 5
"""Parts of each text; the last one is for tuning."""

FIRST_RATES = {"cycle": 0.016, "fixed": 0.016, "pair": 0.008, "svd": 0.008, "central": 0.008}
"""Where the search for a learning rate begins; it doubles or halves from there while that helps."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, dest="command")
    for name in ("tune", "try", "run"):
        command = commands.add_parser(name)
        command.add_argument("--out", type=Path, required=True)
        command.add_argument("--trials", nargs="+", default=list(TRIALS), choices=TRIALS, metavar="TRIAL")
        command.add_argument("--steps", type=int, default=10)
        command.add_argument("--sequences", type=int, default=1)
        command.add_argument("--rounds", type=int, default=10)
        if name != "tune":
            command.add_argument("--rates", type=Path, required=True)
            command.add_argument("--clients", type=int, choices=(4,) if name == "try" else (4, 16), default=4)
            command.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    for name in ("table", "plot"):
        command = commands.add_parser(name)
        command.add_argument("results", type=Path)
        command.add_argument("--clients", type=int, choices=(4, 16), default=4)
        if name == "plot":
            command.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    match options.command:
        case "tune":
            tune(options)
        case "try" | "run":
            run_all(options)
        case "table":
            print_table(read_rows(options.results), options.clients)
        case "plot":
            draw(read_rows(options.results), options.clients, options.out)


def tune(options: argparse.Namespace) -> None:
    """Finds the learning rate of each trial that has one of its own."""
    texts = _tuning()
    run = Run(options.steps, options.sequences, options.rounds, (options.rounds,))

    def loss_at(name: str, rate: float) -> float:
        def measure() -> dict[str, Any]:
            losses, _ = learn(TRIALS[name], rate, run, [*texts], texts, seed=100)
            return {"after": losses}

        return float(
            _measured(options.out, {"trial": name, "rate": rate, "run": _name(run)}, measure)["after"][-1]
        )

    for name in options.trials:
        if TRIALS[name].tuned_as not in ("", name):
            continue
        rate = FIRST_RATES[TRIALS[name].scheme]
        for factor in (2.0, 0.5):
            while loss_at(name, rate * factor) < loss_at(name, rate):
                rate *= factor


def run_all(options: argparse.Namespace) -> None:
    """Measures trials with the rates that were tuned; ``try`` does so on the texts of the tuning."""
    trying = options.command == "try"
    looks = {options.rounds} if trying else {options.rounds // 2, options.rounds}
    run = Run(options.steps, options.sequences, options.rounds, tuple(sorted(looks)))
    texts = _tuning() if trying else _reported()
    clients = [[part] for parts in texts for part in parts] if options.clients == 16 else texts
    tuned = read_rows(options.rates)
    for seed in options.seeds:
        for name in options.trials:
            trial = TRIALS[name]
            rate = best_rate(tuned, trial.tuned_as or name)

            def measure(trial: Trial = trial, rate: float = rate, seed: int = seed) -> dict[str, Any]:
                frozen_a = _directions().a if trial.along_inputs else None
                losses, sent = learn(trial, rate, run, clients, texts, seed=seed, frozen_a=frozen_a)
                return {
                    "before": judge(None, texts) if trying else _before(),
                    "after": losses,
                    "bytes": sent,
                }

            key = {"trial": name, "clients": len(clients), "seed": seed, "rate": rate, "run": _name(run)}
            _measured(options.out, key, measure)


@cache
def _parts() -> list[list[Corpus]]:
    """Of each text its parts, in order."""
    codec = TextCodec(open_base(BASE).tokenizer_json)
    texts = []
    for path in sorted(path for path in SAMPLES.glob("*.txt") if not path.stem.isupper()):
        documents = read_documents(path)
        cuts = [len(documents) * number // PARTS for number in range(PARTS + 1)]
        pieces = [documents[start:stop] for start, stop in pairwise(cuts)]
        texts.append([codec.corpus(split_documents(piece, path), path) for piece in pieces])
    return texts


def _tuning() -> list[list[Corpus]]:
    return [parts[PARTS - 1 :] for parts in _parts()]


def _reported() -> list[list[Corpus]]:
    return [parts[: PARTS - 1] for parts in _parts()]


@cache
def _directions() -> Directions:
    return input_directions(decoder(), _tuning())


@cache
def _before() -> float:
    """The loss of the base alone."""
    return judge(None, _reported())


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def best_rate(tuned: Sequence[dict[str, Any]], name: str) -> float:
    rows = [row for row in tuned if row["trial"] == name]
    if not rows:
        raise SystemExit(f"no rate for {name!r}: tune it first")
    return float(min(rows, key=lambda row: row["after"][-1])["rate"])


def _measured(out: Path, key: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The row of ``key``, from the file if it stands there."""
    for row in read_rows(out):
        if all(row[field] == value for field, value in key.items()):
            return row
    started = time.process_time()
    row = key | measure() | {"cpu_seconds": round(time.process_time() - started, 1)}
    with out.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)
    return row


def _name(run: Run) -> str:
    return f"{run.rounds} rounds of {run.steps} steps of {run.sequences} x {TOKENS}"


if __name__ == "__main__":
    main()
