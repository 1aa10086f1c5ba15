"""Trains the nano base from scratch on one CPU thread: tokenizer, then a b1.58 decoder, until time is up.

Usage::

    python deploy/nano/texts.py --cache /tmp/nano/cache --out /tmp/nano/texts
    python deploy/nano/pretrain.py --texts /tmp/nano/texts --out /tmp/nano/run --minutes 80

Progress through the schedule is time spent over time allowed, so a run on a slower or busier machine sees
fewer tokens but still ends with a learning rate of zero. ``curve.csv`` and ``checkpoint.safetensors`` in the
out folder are rewritten as the run goes; ``--resume`` goes on from them.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from model import SHAPES, Decoder
from optimiser import Muon
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from texts import ASSISTANT, BOS, DOMAINS, EOT, USER
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL_TOKENS = ("<|pad|>", BOS, EOT, USER, ASSISTANT)
# Literature is four megabytes, so a third of all batches would read it more often than it bears.
MIX = {"dialogue": 0.36, "definitions": 0.32, "literature": 0.32}
WARM_UP = 0.02
MUON_RATE, ADAM_RATE = 0.03, 0.006
DECAY, DECAY_UNTIL = 0.1, 0.6  # weight decay, and the share of the run it is on
CURVE_EVERY, CHECK_EVERY, SAVE_EVERY = 15.0, 300.0, 120.0  # seconds of spent time
CHECK_WINDOWS = 24  # held-out windows per domain in the checks on the way
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True, help="CPU time of the training loop")
    parser.add_argument(
        "--wall-minutes", type=float, default=1e9, help="elapsed time, if that runs out first"
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="nano")
    parser.add_argument("--layers", type=int, help="instead of the shape's")
    parser.add_argument("--ffn-size", type=int, help="instead of the shape's")
    parser.add_argument("--batch", type=int, default=8, help="sequences a step")
    parser.add_argument("--muon-rate", type=float, default=MUON_RATE)
    parser.add_argument("--adam-rate", type=float, default=ADAM_RATE)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    texts = {d: json.loads((options.texts / f"{d}.json").read_text()) for d in DOMAINS}
    tokenizer = trained_tokenizer(
        texts, options.out / "tokenizer.json", vocab_size=SHAPES[options.shape].vocab_size
    )
    streams = {d: encoded(tokenizer, texts[d]["train"], options.out / f"{d}.train.npy") for d in DOMAINS}
    held_out = {
        d: encoded(tokenizer, texts[d]["held_out"], options.out / f"{d}.held_out.npy") for d in DOMAINS
    }
    for domain in DOMAINS:
        print(f"{domain}: {len(streams[domain]):,} tokens to train on, {len(held_out[domain]):,} held out")
    train(options, streams, held_out)


def trained_tokenizer(texts: dict[str, dict[str, list[str]]], path: Path, *, vocab_size: int) -> Tokenizer:
    """A byte-level BPE of the training documents; kept in ``path``."""
    if path.exists():
        return Tokenizer.from_file(str(path))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    plain = (_without_special(document) for domain in DOMAINS for document in texts[domain]["train"])
    tokenizer.train_from_iterator(plain, trainer)
    tokenizer.save(str(path))
    return tokenizer


def _without_special(document: str) -> str:
    for token in SPECIAL_TOKENS:
        document = document.replace(token, "\n")
    return document


def encoded(tokenizer: Tokenizer, documents: list[str], path: Path) -> np.ndarray:
    """All documents as one stream of token ids; kept in ``path``."""
    if not path.exists():
        ids = [np.array(e.ids, np.int16) for e in tokenizer.encode_batch(documents, add_special_tokens=False)]
        np.save(path, np.concatenate(ids))
    return np.load(path)


def windows(stream: np.ndarray, context: int) -> torch.Tensor:
    """The stream cut into rows of ``context + 1`` tokens; the last of one row is the first of the next."""
    rows = (len(stream) - 1) // context
    index = np.arange(rows)[:, None] * context + np.arange(context + 1)
    return torch.from_numpy(stream[index].astype(np.int64))


class Sampler:
    """Endless batches with a fixed share of each domain; each domain is read through before it repeats."""

    def __init__(self, streams: dict[str, np.ndarray], context: int, rng: np.random.Generator) -> None:
        self.streams, self.context, self.rng = streams, context, rng
        self.queues: dict[str, list[int]] = {domain: [] for domain in streams}
        self.shares = np.array([MIX[domain] for domain in streams])

    def batch(self, size: int) -> torch.Tensor:
        picked = self.rng.choice(list(self.streams), size=size, p=self.shares / self.shares.sum())
        rows = [self._row(str(domain)) for domain in picked]
        return torch.from_numpy(np.stack(rows).astype(np.int64))

    def _row(self, domain: str) -> np.ndarray:
        stream = self.streams[domain]
        if not self.queues[domain]:
            # A new pass cuts at another offset, so that repeated text is not the same rows again.
            start = int(self.rng.integers(self.context))
            starts = np.arange(start, len(stream) - self.context - 1, self.context)
            self.queues[domain] = self.rng.permutation(starts).tolist()
        at = self.queues[domain].pop()
        return stream[at : at + self.context + 1]


def held_out_loss(model: Decoder, stream: np.ndarray, limit: int | None = None) -> float:
    """Mean nats per token over non-overlapping windows, every token but each window's first a target."""
    rows = windows(stream, model.shape.max_context)
    if limit is not None:
        rows = rows[:: max(1, len(rows) // limit)][:limit]
    return token_losses(model, rows).mean().item()


@torch.no_grad()
def token_losses(model: Decoder, rows: torch.Tensor) -> torch.Tensor:
    """Nats of each target of each row, float64 [rows, context]."""
    return torch.cat([model(part[:, :-1], part[:, 1:], reduction="none").double() for part in rows.split(16)])


def rate_factor(progress: float) -> float:
    """Linear warm-up, then linear to zero (arXiv:2502.15938)."""
    return min(progress / WARM_UP, (1 - progress) / (1 - WARM_UP), 1.0)


def train(
    options: argparse.Namespace, streams: dict[str, np.ndarray], held_out: dict[str, np.ndarray]
) -> None:
    changes = {"layers": options.layers, "ffn_size": options.ffn_size}
    shape = replace(
        SHAPES[options.shape], **{name: size for name, size in changes.items() if size is not None}
    )
    model = Decoder(shape)
    compiled = torch.compile(model)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and name != "embedding"]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or name == "embedding"]
    muon = Muon(matrices)
    adam = torch.optim.AdamW(others, lr=1.0, betas=(0.9, 0.97), eps=1e-10, weight_decay=0.0)
    tokens, spent_before, rows = 0, 0.0, []
    if options.resume:
        tokens, spent_before = load_checkpoint(
            options.out / "checkpoint.safetensors", model, muon, adam, others
        )
        with (options.out / "curve.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if float(row["cpu_seconds"]) <= spent_before]
    sampler = Sampler(streams, shape.max_context, np.random.default_rng(SEED + tokens))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)

    budget, wall = 60 * options.minutes, 60 * options.wall_minutes
    warm_batch = sampler.batch(options.batch)  # compiling is not charged to the budget
    loss_of(compiled, warm_batch).backward()
    started, wall_started = time.process_time(), time.monotonic()
    due = dict.fromkeys(("curve", "check", "save"), spent_before + 1.0)
    losses: list[float] = []
    while True:
        spent = spent_before + time.process_time() - started
        progress = max(spent / budget, (time.monotonic() - wall_started) / wall)
        if progress >= 1:
            break
        factor = rate_factor(progress)
        model.zero_grad(set_to_none=False)
        loss = loss_of(compiled, sampler.batch(options.batch))
        loss.backward()
        muon.step(rate=options.muon_rate * factor, decay=DECAY if progress < DECAY_UNTIL else 0.0)
        for group in adam.param_groups:
            group["lr"] = options.adam_rate * factor
        adam.step()
        tokens += options.batch * shape.max_context
        losses.append(loss.item())
        if spent >= due["curve"]:
            due["curve"] = spent + CURVE_EVERY
            row = {"cpu_seconds": f"{spent:.0f}", "tokens": tokens, "train": f"{np.mean(losses):.4f}"}
            losses = []
            if spent >= due["check"]:
                due["check"] = spent + CHECK_EVERY
                for domain in DOMAINS:
                    row[domain] = f"{held_out_loss(model, held_out[domain], CHECK_WINDOWS):.4f}"
            rows.append(row)
            write_curve(options.out / "curve.csv", rows)
            print(f"{progress:.3f} " + " ".join(f"{k} {v}" for k, v in row.items()), flush=True)
        if spent >= due["save"]:
            due["save"] = spent + SAVE_EVERY
            save_checkpoint(options.out / "checkpoint.safetensors", model, muon, adam, others, tokens, spent)
    save_checkpoint(options.out / "checkpoint.safetensors", model, muon, adam, others, tokens, spent)
    row = {
        "cpu_seconds": f"{spent:.0f}",
        "tokens": tokens,
        "train": f"{np.mean(losses or [float('nan')]):.4f}",
    }
    for domain in DOMAINS:
        row[domain] = f"{held_out_loss(model, held_out[domain]):.4f}"
    rows.append(row)
    write_curve(options.out / "curve.csv", rows)
    mean = np.mean([float(row[domain]) for domain in DOMAINS])
    print("final " + " ".join(f"{k} {v}" for k, v in row.items()) + f" mean {mean:.4f}", flush=True)


def loss_of(model: Decoder, batch: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss: torch.Tensor = model(batch[:, :-1], batch[:, 1:])
    return loss


def write_curve(path: Path, rows: list[dict[str, object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["cpu_seconds", "tokens", "train", *DOMAINS])
        writer.writeheader()
        writer.writerows(rows)


def save_checkpoint(
    path: Path,
    model: Decoder,
    muon: Muon,
    adam: torch.optim.AdamW,
    others: list[torch.nn.Parameter],
    tokens: int,
    spent: float,
) -> None:
    tensors = {f"model.{name}": tensor.detach() for name, tensor in model.state_dict().items()}
    tensors |= {f"muon.{i}": buffer for i, buffer in enumerate(muon.buffers)}
    for i, parameter in enumerate(others):
        for key, value in adam.state[parameter].items():
            tensors[f"adam.{i}.{key}"] = value
    metadata = {"shape": json.dumps(asdict(model.shape)), "tokens": str(tokens), "spent": str(spent)}
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata)
    partial.replace(path)


def load_checkpoint(
    path: Path, model: Decoder, muon: Muon, adam: torch.optim.AdamW, others: list[torch.nn.Parameter]
) -> tuple[int, float]:
    """Puts the saved state in place; returns tokens seen and seconds spent."""
    tensors = load_file(path)
    model.load_state_dict({name[6:]: t for name, t in tensors.items() if name.startswith("model.")})
    for i, buffer in enumerate(muon.buffers):
        buffer.copy_(tensors[f"muon.{i}"])
    for i, parameter in enumerate(others):
        adam.state[parameter] = {key: tensors[f"adam.{i}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    return int(metadata["tokens"]), float(metadata["spent"])


if __name__ == "__main__":
    main()
