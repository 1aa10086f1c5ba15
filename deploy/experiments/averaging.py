"""Measures adapter schemes, delta codecs and outer steps beside each other: held-out loss against bytes.

Usage::

    python deploy/experiments/averaging.py tune --out rates.jsonl --rounds 5
    python deploy/experiments/averaging.py try --rates rates.jsonl --out tried.jsonl --steps 5 --seeds 100
    python deploy/experiments/averaging.py run --rates rates.jsonl --out averaging.jsonl --steps 5
    python deploy/experiments/averaging.py table averaging.jsonl --clients 4
    python deploy/experiments/averaging.py plot averaging.jsonl --out averaging.png

Each of the four samples is cut into five parts of consecutive documents. Learning rates are tuned on the
fifth parts, training and held-out documents alike, and ideas are tried there; everything reported comes from
the other four. Four
clients hold one text each, sixteen hold one part each. Losses are nats per token over the held-out documents
of all four texts, the same for any number of clients.

Training and codecs are the node's; averaging is done in float32, so that schemes and outer steps which the
protocol does not have can stand beside those it has. A result that already stands in a file is not measured
again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from schemes import SAMPLES, Setting, charter_for

from sterna.train.base import builtin_bases, open_base
from sterna.train.evaluate import held_out_loss
from sterna.train.lora import Lora, float_state, lora_of_round
from sterna.train.loss import Head
from sterna.train.model import Decoder
from sterna.train.step import train_round
from sterna.train.text import read_documents, split_documents
from sterna.train.tokens import Corpus, TextCodec
from sterna_protocol.merge.adapter import genesis_adapter
from sterna_protocol.merge.codec import block_elements, delta_blob_bytes, dequantise, quantise
from sterna_protocol.merge.scheme import delta_parts, delta_size, subspace_of
from sterna_protocol.swarm.charter import Charter

Values = NDArray[np.float32]

PARTS = 5
"""Parts of each text; the last one is for tuning."""

TOKENS = 128
WARMUP_STEPS = 2
HELD_OUT_TOKENS = 2048
LOOK_TOKENS = 768
"""Held-out tokens of each part behind the loss at the end, and behind one on the way."""

NAME_HEIGHT = 0.023
"""Nats per token that a name in the plot takes."""

BASE = builtin_bases()["nano"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One way to learn together.

    Attributes:
        scheme: of the charter; "svd" trains as ``pair`` and cuts the mean of B A back to the rank.
        codec: of the charter, or "fp32" for deltas as they are.
        feedback: what the codec lost is added to the same peer's next delta of the same subspace.
        unbiased: a ternary delta keeps its length along the values instead of losing least of them.
        overshoot: what is sent stands for this times what there is to send; feedback takes the rest back.
        momentum: of the outer step, Nesterov's; 0 adds the mean as it is.
        outer_rate: multiplies the outer step.
        tuned_as: the trial whose learning rate this one takes; "" or itself for one of its own.
    """

    scheme: Literal["cycle", "fixed", "pair", "svd", "central"]
    rank: int = 8
    subspaces: int = 1
    codec: str = "fp32"
    feedback: bool = False
    unbiased: bool = False
    overshoot: float = 1.0
    momentum: float = 0.0
    outer_rate: float = 1.0
    tuned_as: str = ""


def _cycle(
    subspaces: int,
    codec: str,
    *,
    feedback: bool = False,
    unbiased: bool = False,
    overshoot: float = 1.0,
    outer_rate: float = 1.0,
) -> Trial:
    return Trial(
        scheme="cycle",
        subspaces=subspaces,
        codec=codec,
        feedback=feedback,
        unbiased=unbiased,
        overshoot=overshoot,
        outer_rate=outer_rate,
        tuned_as="cycle K=4",
    )


def _fixed(codec: str, *, rank: int = 8, feedback: bool = False, overshoot: float = 1.0) -> Trial:
    return Trial(
        scheme="fixed",
        rank=rank,
        codec=codec,
        feedback=feedback,
        overshoot=overshoot,
        tuned_as="cycle K=4",
    )


# The trials without a codec come first of their kind: the others take their learning rates.
TRIALS = {
    "cycle K=4": _cycle(4, "fp32"),
    "cycle K=4 ternary": _cycle(4, "ternary"),
    "pair": Trial(scheme="pair"),
    "central": Trial(scheme="central"),
    "pair momentum": Trial(scheme="pair", momentum=0.9, outer_rate=0.7),
    "cycle K=8 ternary": _cycle(8, "ternary"),
    "svd": Trial(scheme="svd"),
    "fixed r=8": _fixed("fp32"),
    "fixed r=8 ternary": _fixed("ternary"),
    "fixed r=8 ternary feedback": _fixed("ternary", feedback=True),
    "fixed r=16 ternary": _fixed("ternary", rank=16),
    "fixed r=32 ternary": _fixed("ternary", rank=32),
    "pair ternary": Trial(scheme="pair", codec="ternary", tuned_as="pair"),
    "cycle K=4 momentum": Trial(scheme="cycle", subspaces=4, momentum=0.9, outer_rate=0.7),
    "cycle K=4 int8": _cycle(4, "int8"),
    "cycle K=4 int4": _cycle(4, "int4"),
    "cycle K=4 ternary feedback": _cycle(4, "ternary", feedback=True),
    "cycle K=4 ternary unbiased": _cycle(4, "ternary", unbiased=True),
    "cycle K=4 ternary unbiased outer 1.5": _cycle(4, "ternary", unbiased=True, outer_rate=1.5),
    "cycle K=4 outer 1.5": _cycle(4, "fp32", outer_rate=1.5),
    "cycle K=4 top2": _cycle(4, "top2"),
    "cycle K=4 top2 feedback": _cycle(4, "top2", feedback=True),
    "cycle K=4 top2 overshoot": _cycle(4, "top2", feedback=True, overshoot=1.5),
    "cycle K=4 top2 overshoot 2": _cycle(4, "top2", feedback=True, overshoot=2.0),
    "cycle K=4 top2 overshoot 4": _cycle(4, "top2", feedback=True, overshoot=4.0),
    "cycle K=2 top2 overshoot 2": _cycle(2, "top2", feedback=True, overshoot=2.0),
    "fixed r=8 top2 feedback": _fixed("top2", feedback=True),
    "fixed r=8 top2 overshoot": _fixed("top2", feedback=True, overshoot=1.5),
    "fixed r=8 top2 overshoot 1.75": _fixed("top2", feedback=True, overshoot=1.75),
    "fixed r=8 top2 overshoot 2": _fixed("top2", feedback=True, overshoot=2.0),
    "fixed r=8 top2 overshoot 3": _fixed("top2", feedback=True, overshoot=3.0),
}

FIRST_RATES = {"cycle": 0.016, "fixed": 0.016, "pair": 0.008, "svd": 0.008, "central": 0.008}
"""Where the search for a learning rate begins; it doubles or halves from there while that helps."""


@dataclass(frozen=True, slots=True)
class Run:
    """How long and how much: steps a round, sequences a step, rounds, and the rounds after which to look."""

    steps: int
    sequences: int
    rounds: int
    looks: tuple[int, ...]


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
    {"tune": tune, "try": run_all, "run": run_all, "table": print_table, "plot": draw}[options.command](
        options
    )


# --- what is measured ---


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
                losses, sent = learn(trial, rate, run, clients, texts, seed=seed)
                return {
                    "before": _judge(None, texts) if trying else _before(),
                    "after": losses,
                    "bytes": sent,
                }

            key = {"trial": name, "clients": len(clients), "seed": seed, "rate": rate, "run": _name(run)}
            _measured(options.out, key, measure)


def learn(
    trial: Trial,
    rate: float,
    run: Run,
    clients: Sequence[Sequence[Corpus]],
    texts: Sequence[Sequence[Corpus]],
    *,
    seed: int,
) -> tuple[list[float], int]:
    """The held-out losses after the rounds to look at, and the bytes that a client sends in a round."""
    charter = charter_of(trial, run, seed, rate=rate)
    state = _start(trial, run, seed)
    if trial.scheme == "central":
        return _learn_central(charter, state, run, clients, texts, seed), 0
    residuals: list[Values] = [np.zeros_like(state) for _ in clients]
    velocity = np.zeros_like(state)
    losses = []
    for round_ in range(run.rounds):
        row = subspace_of(charter.adapter, round_)
        sent = []
        for number, (data, residual) in enumerate(zip(clients, residuals, strict=True)):
            lora = lora_of_round(charter.adapter, state, round_)
            train_round(
                _decoder(), _head(), lora, data, charter.recipe, seed=1000 * seed + number, round_=round_
            )
            delta = lora.values.numpy() - state[row]
            sent.append(_through_codec(trial, delta, residual[row]))
        if trial.scheme == "svd":
            state[row] = _refactored(charter, [state[row] + delta for delta in sent])
        else:
            mean = np.mean(sent, axis=0)
            velocity[row] = trial.momentum * velocity[row] + mean
            state[row] += trial.outer_rate * (trial.momentum * velocity[row] + mean)
        if round_ + 1 in run.looks:
            lora = Lora(charter.adapter, state, trained=None)
            losses.append(_judge(lora, texts, on_the_way=round_ + 1 < run.rounds))
    return losses, sent_bytes(trial, charter)


def _learn_central(
    charter: Charter,
    state: Values,
    run: Run,
    clients: Sequence[Sequence[Corpus]],
    texts: Sequence[Sequence[Corpus]],
    seed: int,
) -> list[float]:
    """All texts and the tokens of all clients on one machine, with one optimiser from first to last step."""
    lora = lora_of_round(charter.adapter, state, 0)
    losses: list[float] = []

    def on_step(step: int, loss: float) -> None:
        if step % run.steps == 0 and step // run.steps in run.looks:
            losses.append(_judge(lora, texts, on_the_way=step < run.steps * run.rounds))

    recipe = charter.recipe.model_copy(update={"steps": run.steps * run.rounds})
    corpora = [corpus for data in clients for corpus in data]
    train_round(
        _decoder(),
        _head(),
        lora,
        corpora,
        recipe,
        seed=1000 * seed,
        round_=0,
        sequences_factor=len(clients),
        on_step=on_step,
    )
    return losses


def _through_codec(trial: Trial, delta: Values, residual: Values) -> Values:
    """What the others get of ``delta``; what they miss is kept in ``residual`` where there is feedback."""
    if trial.codec == "fp32":
        return delta
    wanted = delta + residual if trial.feedback else delta
    if trial.unbiased:
        return _unbiased_ternary(wanted)
    got = dequantise(quantise(wanted * np.float32(trial.overshoot), trial.codec))  # type: ignore[arg-type]  # a codec's name
    if trial.feedback:
        residual[:] = wanted - got
    return got


def _unbiased_ternary(values: Values) -> Values:
    """Ternary deltas whose mean over peers is nearest to the mean of ``values`` [n], if peers err apart.

    Of each block, every power-of-two step s and every number k of largest elements that become +-s is one
    choice. Its error is a part along the values, which all peers share, and a part across them, whose square
    the mean of four peers divides by four.
    """
    block = block_elements("ternary")
    got = np.zeros_like(values)
    for start in range(0, values.size, block):
        part = values[start : start + block].astype(np.float64)
        magnitudes = np.sort(np.abs(part))[::-1]
        square = float(part @ part)
        if square == 0:
            continue
        counts = np.arange(1, part.size + 1)
        _, largest = np.frexp(magnitudes[0])
        steps = np.ldexp(1.0, largest - np.arange(-1, 5))[:, None]
        along = steps * np.cumsum(magnitudes) / square
        errors = (1 - along) ** 2 * square + np.maximum(counts * steps**2 - along**2 * square, 0) / 4
        row, last = np.unravel_index(errors.argmin(), errors.shape)
        chosen = np.abs(part) >= magnitudes[last]
        got[start : start + block] = np.where(chosen, np.sign(part) * steps[row], 0)
    return got


def _refactored(charter: Charter, values: Sequence[Values]) -> Values:
    """A and B of the rank of the charter, nearest to the mean of the clients' products B A."""
    parts = {(part.name, part.matrix): part for part in delta_parts(charter.adapter)}
    merged = np.empty_like(values[0])
    for (name, matrix), part in parts.items():
        if matrix == "b":
            continue
        b_part = parts[name, "b"]
        products = [
            client[b_part.offset : b_part.stop].reshape(b_part.shape)
            @ client[part.offset : part.stop].reshape(part.shape)
            for client in values
        ]
        left, lengths, right = np.linalg.svd(np.mean(products, axis=0), full_matrices=False)
        root = np.sqrt(lengths[: charter.adapter.rank])
        merged[part.offset : part.stop] = (root[:, None] * right[: root.size]).reshape(-1)
        merged[b_part.offset : b_part.stop] = (left[:, : root.size] * root).reshape(-1)
    return merged


def charter_of(trial: Trial, run: Run, seed: int, *, rate: float = 0.001) -> Charter:
    setting = Setting(
        scheme="pair" if trial.scheme in ("svd", "central") else trial.scheme,
        rank=trial.rank,
        subspaces=trial.subspaces,
        codec="int8" if trial.codec == "fp32" else trial.codec,
        rate=rate,
        warmup=WARMUP_STEPS,
        steps=run.steps,
        sequences=run.sequences,
        rounds=run.rounds,
    )
    charter = charter_for(BASE, setting, seed)
    return charter.model_copy(
        update={"recipe": charter.recipe.model_copy(update={"tokens_per_sequence": TOKENS})}
    )


def sent_bytes(trial: Trial, charter: Charter) -> int:
    """Bytes that a client sends in a round."""
    if trial.codec == "fp32":
        return 4 * delta_size(charter.adapter)
    return delta_blob_bytes(charter)


def _start(trial: Trial, run: Run, seed: int) -> Values:
    return float_state(genesis_adapter(charter_of(trial, run, seed)))


def _judge(lora: Lora | None, texts: Sequence[Sequence[Corpus]], *, on_the_way: bool = False) -> float:
    corpora = [corpus for parts in texts for corpus in parts]
    limit = LOOK_TOKENS if on_the_way else HELD_OUT_TOKENS
    judged = held_out_loss(_decoder(), _head(), lora, corpora, length=TOKENS, limit_tokens=limit)
    return round(judged.loss, 5)


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
def _before() -> float:
    """The loss of the base alone."""
    return _judge(None, _reported())


@cache
def _decoder() -> Decoder:
    return Decoder(open_base(BASE), backward="int8x2")


@cache
def _head() -> Head:
    return Head(open_base(BASE).head)


# --- what is kept and shown ---


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


def print_table(options: argparse.Namespace) -> None:
    """One line a trial; "share" is of the gain of ``central``, "over pair" how far below it in each seed."""
    rows = [row for row in read_rows(options.results) if row["clients"] == options.clients]
    for run in dict.fromkeys(row["run"] for row in rows):
        print(f"{options.clients} clients, {run}\n")
        print("| trial | rate | bytes | seeds | half way | end | share of central's gain | below pair |")
        print("|---|---|---|---|---|---|---|---|")
        by_trial: dict[str, dict[int, dict[str, Any]]] = {}
        for row in rows:
            if row["run"] == run:
                by_trial.setdefault(row["trial"], {})[row["seed"]] = row
        for name, by_seed in by_trial.items():
            ends = [row["after"][-1] for row in by_seed.values()]
            shares = [
                100 * (row["before"] - row["after"][-1]) / (row["before"] - other["after"][-1])
                for seed, row in by_seed.items()
                if (other := by_trial.get("central", {}).get(seed))
            ]
            below = [
                other["after"][-1] - row["after"][-1]
                for seed, row in sorted(by_seed.items())
                if (other := by_trial.get("pair", {}).get(seed))
            ]
            first = next(iter(by_seed.values()))
            cells = [
                name,
                f"{first['rate']:g}",
                f"{first['bytes']:,}" if first["bytes"] else "",
                str(len(by_seed)),
                f"{statistics.mean(row['after'][0] for row in by_seed.values()):.3f}",
                f"{statistics.mean(ends):.3f} ± {(max(ends) - min(ends)) / 2:.3f}",
                f"{statistics.mean(shares):.1f} %" if shares else "",
                " ".join(f"{value:+.3f}" for value in below),
            ]
            print("| " + " | ".join(cells) + " |")
        print()


def draw(options: argparse.Namespace) -> None:
    """The runs of the length that stands first in the file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in read_rows(options.results) if row["clients"] == options.clients]
    rows = [row for row in rows if row["run"] == rows[0]["run"]]
    figure, axes = plt.subplots(figsize=(7, 4.2))
    named: dict[float, float] = {}  # where the last name stands among those of the same bytes
    colours = {"cycle": "C0", "fixed": "C1", "pair": "C2", "svd": "C3"}
    by_mean = sorted(
        dict.fromkeys(row["trial"] for row in rows),
        key=lambda name: statistics.mean(row["after"][-1] for row in rows if row["trial"] == name),
    )
    for name in by_mean:
        mine = [row for row in rows if row["trial"] == name]
        ends = [row["after"][-1] for row in mine]
        mean = statistics.mean(ends)
        if name == "central":
            axes.axhline(mean, color="black", linestyle=":", linewidth=0.8, label="central")
            continue
        sent = mine[0]["bytes"] / 1000
        spread = [[mean - min(ends)], [max(ends) - mean]]
        axes.errorbar(sent, mean, yerr=spread, fmt="o", color=colours[TRIALS[name].scheme], markersize=4)
        named[sent] = max(mean, named.get(sent, 0) + NAME_HEIGHT)
        axes.annotate(name, (sent, named[sent]), textcoords="offset points", xytext=(5, -2), fontsize=7)
    axes.set(xscale="log", xlim=(3, 2500))  # room for the names on the right
    axes.set(xlabel="kB a peer sends in a round", ylabel="held-out loss, nats per token")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(options.out, dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    main()
