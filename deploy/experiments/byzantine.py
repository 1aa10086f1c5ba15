"""Measures what poisoners do to what a swarm learns: attack by attack, rule by rule.

Usage::

    python deploy/experiments/byzantine.py run --out docs/experiments/byzantine.jsonl
    python deploy/experiments/byzantine.py table docs/experiments/byzantine.jsonl
    python deploy/experiments/byzantine.py plot docs/experiments/byzantine.jsonl \\
        --out docs/experiments/byzantine.png

Twenty peers share the shipped samples unevenly (Dirichlet, 0.3) and train the base ``tiny`` for ten rounds.
The deltas are those of ``sterna simulate --learning on``, quantised and merged as nodes do it; the network
between the peers is left out, so that each merge is of all twenty. ``clean`` is the mean of twenty honest
peers.

``run`` goes through the cells in an order that makes early results useful, and skips those that stand in the
file, so that it can be stopped at any time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from sterna.app.demo.samples import sample_texts
from sterna.simulate.classroom import Classroom, taught_in_one_room
from sterna.simulate.poison import POISONS
from sterna.simulate.trial import Trial, cast, charter_of
from sterna.train.base import builtin_bases, open_base
from sterna.train.crowd import Crowd

PEERS, ROUNDS, TRIM_PERCENT = 20, 10, 30
SEEDS = range(5)
SHARES = (0.3, 0.2, 0.1)
DEFAULT = "clip+filter"
OTHERS = ("nnm+trimmed", "trimmed", "median", "clip+mean", "mean")
STRONGEST = ("ipm-adaptive", "alie-adaptive", "sign-flip")
BARS = {0.1: 0.05, 0.2: 0.12, 0.3: 0.30}
CLEAN = "none"


@dataclass(frozen=True, slots=True)
class Cell:
    seed: int
    share: float
    attack: str
    rule: str


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, dest="command")
    run = commands.add_parser("run")
    run.add_argument("--out", type=Path, required=True)
    run.add_argument("--cells", type=int, default=10_000, help="stop after so many")
    for name in ("table", "plot"):
        command = commands.add_parser(name)
        command.add_argument("results", type=Path)
        if name == "plot":
            command.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.command == "run":
        torch.set_num_threads(1)
        measure(options.out, options.cells)
    elif options.command == "table":
        print_tables(read(options.results))
    else:
        plot(read(options.results), options.out)


def cells() -> Iterator[Cell]:
    """Seed 0 of everything that matters most, then the other rules, then the other seeds."""
    for seed in SEEDS:
        yield Cell(seed, 0.0, CLEAN, "mean")
        yield Cell(seed, 0.3, "sign-flip", "mean")
        for share, attack in itertools.product(SHARES, reversed(POISONS)):
            yield Cell(seed, share, attack, DEFAULT)
        if seed == 0:
            yield Cell(seed, 0.0, CLEAN, DEFAULT)
            for attack, rule in itertools.product(STRONGEST, OTHERS):
                yield Cell(seed, 0.3, attack, rule)
    for rule in OTHERS[:-1]:
        yield Cell(0, 0.0, CLEAN, rule)
    yield from (Cell(0, share, "sign-flip", "mean") for share in SHARES)
    for attack, rule in itertools.product(POISONS, OTHERS):
        yield Cell(0, 0.3, attack, rule)


def measure(out: Path, most: int) -> None:
    known = read(out)
    crowds: dict[int, Crowd] = {}
    for cell in cells():
        if cell in known or not most:
            continue
        if cell.seed not in crowds:
            base = open_base(builtin_bases()["tiny"])
            crowds = {
                cell.seed: Crowd(base, sample_texts(), peers=PEERS, sharing="dirichlet", seed=cell.seed)
            }
        started = time.process_time()
        loss = known[cell] = loss_of(crowds[cell.seed], cell)
        seconds = round(time.process_time() - started, 1)
        with out.open("a") as file:
            file.write(json.dumps(asdict(cell) | {"loss": round(loss, 4), "cpu_seconds": seconds}) + "\n")
        print(f"{cell}: {loss:.3f}, {seconds} s", flush=True)
        most -= 1


def loss_of(crowd: Crowd, cell: Cell) -> float:
    """Held-out nats per token after the last round."""
    trial = Trial(
        peers=PEERS,
        rounds=ROUNDS,
        seed=cell.seed,
        base="tiny",
        byzantine=cell.share,
        attack="mixed" if cell.attack == CLEAN else cell.attack,
        rule=cell.rule,
        trim=TRIM_PERCENT,
    )
    classroom = Classroom(crowd, charter_of(trial, crowd), peers=PEERS, poisons=cast(trial).poisons)
    return classroom.loss(taught_in_one_room(classroom, PEERS, ROUNDS)[-1])


def read(path: Path) -> dict[Cell, float]:
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {Cell(row["seed"], row["share"], row["attack"], row["rule"]): row["loss"] for row in rows}


def above_clean(results: dict[Cell, float], share: float, attack: str, rule: str) -> list[float]:
    """What the attack costs under the rule, for each seed that was measured."""
    return [
        loss - results[Cell(cell.seed, 0.0, CLEAN, "mean")]
        for cell, loss in sorted(results.items(), key=lambda entry: entry[0].seed)
        if (cell.share, cell.attack, cell.rule) == (share, attack, rule)
    ]


def print_tables(results: dict[Cell, float]) -> None:
    shares = sorted(SHARES)
    print(f"Loss above clean under {DEFAULT}: mean over seeds (largest, seeds).\n")
    print("| attack | " + " | ".join(f"{share:.0%}" for share in shares) + " |")
    print("|---" * (1 + len(shares)) + "|")
    for attack in POISONS:
        found = [_cell(above_clean(results, share, attack, DEFAULT)) for share in shares]
        print(f"| {attack} | " + " | ".join(found) + " |")
    print("| the bar | " + " | ".join(f"{BARS[share]:+.2f}" for share in shares) + " |")
    rules = (DEFAULT, *OTHERS)
    print("\nLoss above clean under 30 % of poisoners, rule by rule, seed 0.\n")
    print("| attack | " + " | ".join(rules) + " |")
    print("|---" * (1 + len(rules)) + "|")
    for share, attack in ((0.0, CLEAN), *((0.3, attack) for attack in POISONS)):
        found = [above_clean(results, share, attack, rule)[:1] for rule in rules]
        print(f"| {attack} | " + " | ".join(f"{cost[0]:+.3f}" if cost else "" for cost in found) + " |")


def _cell(costs: list[float]) -> str:
    if not costs:
        return ""
    return f"{statistics.mean(costs):+.3f} ({max(costs):+.3f}, {len(costs)})"


def plot(results: dict[Cell, float], out: Path) -> None:
    """What each attack costs under each rule at 30 %, seed 0; a bar that leaves the picture says how much."""
    from matplotlib.figure import Figure

    rules, top = (DEFAULT, *OTHERS), 1.0
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(rules)
    for index, rule in enumerate(rules):
        for place, attack in enumerate(POISONS):
            for cost in above_clean(results, 0.3, attack, rule)[:1]:
                at = place + (index - (len(rules) - 1) / 2) * width
                label = rule if place == 0 else None
                axes.bar(at, min(cost, top), width, color=f"C{index}", label=label)
                if cost > top:
                    axes.text(at, top, f"{cost:.0f}", ha="center", va="bottom", fontsize=7)
    axes.axhline(BARS[0.3], color="black", linestyle=":", linewidth=1)
    axes.set(ylim=(0, top * 1.08), ylabel="held-out loss above clean, nats per token")
    axes.set_xticks(range(len(POISONS)), list(POISONS))
    axes.set_title("6 of 20 peers poison; ten rounds, seed 0")
    figure.legend(loc="outside lower center", ncols=len(rules), fontsize=8)
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    main()
