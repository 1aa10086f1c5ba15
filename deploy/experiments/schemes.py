"""Measures what peers gain together: scheme against scheme, against training alone, against one machine.

Usage::

    python deploy/experiments/schemes.py run --out results.jsonl --schemes cycle --seeds 0 1 2
    python deploy/experiments/schemes.py run --out results.jsonl --kinds swarm --rate 0.008
    python deploy/experiments/schemes.py table results.jsonl

Four peers, one of the shipped samples each; the merge, the codec and the training are those of the node,
only without network and processes. Losses are nats per token over the held-out parts of all four samples.
A result that already stands in the file is not measured again. ``central`` has all texts and the tokens of
all peers on one machine; ``alone`` is one peer's adapter after the same steps without the others.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from sterna.train.base import builtin_bases, open_base
from sterna.train.jobs import Workshop
from sterna_protocol.merge.adapter import encode_adapter, genesis_adapter
from sterna_protocol.merge.codec import decode_delta
from sterna_protocol.merge.rules import merge
from sterna_protocol.swarm.charter import (
    AdapterScheme,
    AdmissionPolicy,
    Charter,
    Limits,
    Linear,
    MergeRule,
    Recipe,
    Timing,
)
from sterna_protocol.wire.messages import SlateEntry

SAMPLES = Path(__file__).parents[2] / "node" / "sterna" / "data" / "samples"
# Starting rates per scheme, picked with seed 0 (docs/experiments/schemes.md).
RATES = {"cycle": 0.016, "fixed": 0.016, "pair": 0.008}


@dataclass(frozen=True, slots=True)
class Setting:
    scheme: str
    rank: int
    subspaces: int
    codec: str
    rate: float
    warmup: int
    steps: int
    sequences: int
    rounds: int

    @property
    def name(self) -> str:
        return json.dumps([getattr(self, field) for field in self.__slots__])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, dest="command")
    run = commands.add_parser("run")
    run.add_argument("--out", type=Path, required=True)
    run.add_argument("--schemes", nargs="+", default=["cycle"], choices=sorted(RATES))
    run.add_argument("--kinds", nargs="+", default=["swarm", "alone", "central"])
    run.add_argument("--seeds", nargs="+", type=int, default=[0])
    run.add_argument("--base", type=Path, default=builtin_bases()["nano"])
    run.add_argument("--samples", type=Path, default=SAMPLES)
    run.add_argument("--rate", type=float)
    run.add_argument("--rank", type=int, default=8)
    run.add_argument("--subspaces", type=int, default=4, help="of cycle")
    run.add_argument("--codec", default="ternary")
    run.add_argument("--warmup", type=int, default=4)
    run.add_argument("--steps", type=int, default=40)
    run.add_argument("--sequences", type=int, default=4)
    run.add_argument("--rounds", type=int, default=5)
    table = commands.add_parser("table")
    table.add_argument("results", type=Path)
    options = parser.parse_args()
    if options.command == "table":
        print_table(options.results)
        return
    torch.set_num_threads(1)
    workshop = Workshop(options.base, backward="int8x2", activation_bytes=1 << 30)
    for seed in options.seeds:
        for scheme in options.schemes:
            setting = Setting(
                scheme=scheme,
                rank=options.rank,
                subspaces=options.subspaces if scheme == "cycle" else 1,
                codec=options.codec,
                rate=options.rate or RATES[scheme],
                warmup=options.warmup,
                steps=options.steps,
                sequences=options.sequences,
                rounds=options.rounds,
            )
            for kind in options.kinds:
                measure(workshop, options.base, options.samples, options.out, setting, kind, seed)


def measure(
    workshop: Workshop, base: Path, samples: Path, out: Path, setting: Setting, kind: str, seed: int
) -> None:
    key = {"kind": kind, "seed": seed, "setting": setting.name, "base": open_base(base).digest.hex()[:16]}
    known = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    if any(all(row[field] == value for field, value in key.items()) for row in known):
        return
    charter = charter_for(base, setting, seed)
    texts = [path for path in sorted(samples.glob("*.txt")) if not path.stem.isupper()]
    started = time.process_time()
    if kind == "swarm":
        losses = [swarm(workshop, charter, texts, setting.rounds, seed)]
    elif kind == "central":
        losses = [alone(workshop, charter, texts, texts, setting.rounds, seed, len(texts))]
    else:
        losses = [alone(workshop, charter, [text], texts, setting.rounds, seed, 1) for text in texts]
    row = key | {
        "before": before_of(workshop, charter, texts, known, key["base"]),
        "after": losses,
        "cpu_seconds": round(time.process_time() - started, 1),
    }
    with out.open("a") as file:
        file.write(json.dumps(row) + "\n")
    after = " ".join(f"{loss:.3f}" for loss in losses)
    print(f"{kind} {setting.name} seed {seed}: {row['before']:.3f} -> {after}", flush=True)


def before_of(
    workshop: Workshop, charter: Charter, texts: list[Path], known: list[dict[str, Any]], base: str
) -> float:
    """The loss of the base alone, from an earlier row if there is one: no setting changes it."""
    for row in known:
        if row["base"] == base:
            return float(row["before"])
    return workshop.evaluate(charter, None, texts).loss


def swarm(workshop: Workshop, charter: Charter, texts: list[Path], rounds: int, seed: int) -> float:
    """Union loss of the merged adapter after ``rounds`` rounds."""
    adapter = genesis_adapter(charter)
    peers = [sha256(f"peer {number}".encode()).digest() for number in range(len(texts))]
    for round_ in range(rounds):
        blob = encode_adapter(charter, adapter)
        deltas = []
        for number, (peer, text) in enumerate(zip(peers, texts, strict=True)):
            result = workshop.train(
                charter,
                blob,
                round_=round_,
                author=peer,
                data=text,
                seed=1000 * seed + number,
                progress=lambda done, in_all, loss: None,
            )
            delta = decode_delta(charter, author=peer, round_=round_, data=result.delta_blob)
            entry = SlateEntry(author=peer, announcement=peer, delta=peer, trained_round=round_)
            deltas.append((entry, delta))
        adapter = merge(charter, adapter, deltas, round_)
    return workshop.evaluate(charter, encode_adapter(charter, adapter), texts).loss


def alone(
    workshop: Workshop,
    charter: Charter,
    data: list[Path],
    texts: list[Path],
    rounds: int,
    seed: int,
    factor: int,
) -> float:
    """Union loss after the same steps without averaging."""
    losses = workshop.train_alone(
        charter,
        rounds=rounds,
        data=data,
        held_out=texts,
        seed=1000 * seed,
        sequences_factor=factor,
        every_round=False,
        progress=lambda done, in_all, loss: None,
    )
    return losses[-1].loss


def charter_for(base: Path, setting: Setting, seed: int) -> Charter:
    architecture = open_base(base).architecture
    linears = tuple(
        Linear(name=name.removeprefix("layers.0."), out_features=out, in_features=in_)
        for name, out, in_ in architecture.linears()
        if name.startswith("layers.0.")
    )
    return Charter(
        version=1,
        name="experiment",
        nonce=bytes(16),
        founders=(bytes(32),),
        base_name="nano",
        base=bytes(32),
        tokenizer=bytes(32),
        adapter=AdapterScheme.model_validate(
            {
                "scheme": setting.scheme,
                "rank": setting.rank,
                "subspaces": setting.subspaces,
                "scale": 2,
                "layers": architecture.layers,
                "linears": linears,
                "seed": sha256(f"experiment {seed}".encode()).digest(),
            }
        ),
        codec=setting.codec,  # type: ignore[arg-type]  # pydantic checks it
        merge=MergeRule(rule="mean", trim_percent=0),
        recipe=Recipe(
            steps=setting.steps,
            sequences_per_step=setting.sequences,
            tokens_per_sequence=min(256, architecture.max_context),
            learning_rate_micros=round(setting.rate * 1e6),
            warmup_steps=setting.warmup,
        ),
        timing=Timing(train=1000, attest=1000, vote=1000),
        limits=Limits(min_deltas=1, max_deltas=8, max_staleness=2, retention_rounds=2),
        quorum="byzantine",
        admission=AdmissionPolicy(mode="open", max_depth=1, quota=0, open_percent=20, aged_rounds=0),
    )


def print_table(results: Path) -> None:
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    titles = (
        "setting",
        "seeds",
        "before",
        "swarm",
        "central",
        "share of its gain",
        "best alone",
        "over swarm",
    )
    print("| " + " | ".join(titles) + " |")
    print("|---" * len(titles) + "|")
    for name in dict.fromkeys(row["setting"] for row in rows):
        by_kind = {
            kind: {row["seed"]: row for row in rows if row["setting"] == name and row["kind"] == kind}
            for kind in ("swarm", "central", "alone")
        }
        seeds = sorted(by_kind["swarm"])
        if not seeds:
            continue
        before = statistics.mean(by_kind["swarm"][seed]["before"] for seed in seeds)
        after = {seed: by_kind["swarm"][seed]["after"][0] for seed in seeds}
        central = {seed: row["after"][0] for seed, row in by_kind["central"].items() if seed in after}
        best = {seed: min(row["after"]) for seed, row in by_kind["alone"].items() if seed in after}
        share = [(before - after[seed]) / (before - central[seed]) for seed in central]
        margin = [best[seed] - after[seed] for seed in best]
        cells = [
            name.replace('"', "").strip("[]"),
            str(len(seeds)),
            f"{before:.3f}",
            _spread(list(after.values())),
            _spread(list(central.values())),
            f"{100 * statistics.mean(share):.1f} %" if share else "",
            _spread(list(best.values())),
            _spread(margin),
        ]
        print("| " + " | ".join(cells) + " |")


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    half = f" ± {(max(values) - min(values)) / 2:.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{half}"


if __name__ == "__main__":
    main()
