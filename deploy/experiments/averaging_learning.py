"""Learns one trial of averaging.py: rounds on several clients, what they send, and the held-out loss.

Training and codecs are the node's; averaging is done in float32, so that schemes and outer steps which the
protocol does not have can stand beside those it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from averaging_trials import Trial
from numpy.typing import NDArray
from schemes import Setting, charter_for

from sterna.train.base import builtin_bases, open_base
from sterna.train.evaluate import held_out_loss
from sterna.train.lora import FrozenA, Lora, float_state, lora_of_round
from sterna.train.loss import Head
from sterna.train.model import Decoder
from sterna.train.step import train_round
from sterna.train.tokens import Corpus
from sterna_protocol.merge.adapter import genesis_adapter
from sterna_protocol.merge.codec import block_elements, delta_blob_bytes, dequantise, quantise
from sterna_protocol.merge.scheme import delta_parts, delta_size, subspace_of
from sterna_protocol.swarm.charter import Charter

Values = NDArray[np.float32]

TOKENS = 128
WARMUP_STEPS = 2
HELD_OUT_TOKENS = 2048
LOOK_TOKENS = 768
"""Held-out tokens of each part behind the loss at the end, and behind one on the way."""

BASE = builtin_bases()["nano"]


@dataclass(frozen=True, slots=True)
class Run:
    """How long and how much: steps a round, sequences a step, rounds, and the rounds after which to look."""

    steps: int
    sequences: int
    rounds: int
    looks: tuple[int, ...]


def learn(
    trial: Trial,
    rate: float,
    run: Run,
    clients: Sequence[Sequence[Corpus]],
    texts: Sequence[Sequence[Corpus]],
    *,
    seed: int,
    frozen_a: FrozenA | None = None,
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
            lora = lora_of_round(charter.adapter, state, round_, frozen_a=frozen_a)
            train_round(
                decoder(), _head(), lora, data, charter.recipe, seed=1000 * seed + number, round_=round_
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
            lora = Lora(charter.adapter, state, trained=None, frozen_a=frozen_a)
            losses.append(judge(lora, texts, on_the_way=round_ + 1 < run.rounds))
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
            losses.append(judge(lora, texts, on_the_way=step < run.steps * run.rounds))

    recipe = charter.recipe.model_copy(update={"steps": run.steps * run.rounds})
    corpora = [corpus for data in clients for corpus in data]
    train_round(
        decoder(),
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


def judge(lora: Lora | None, texts: Sequence[Sequence[Corpus]], *, on_the_way: bool = False) -> float:
    corpora = [corpus for parts in texts for corpus in parts]
    limit = LOOK_TOKENS if on_the_way else HELD_OUT_TOKENS
    judged = held_out_loss(decoder(), _head(), lora, corpora, length=TOKENS, limit_tokens=limit)
    return round(judged.loss, 5)


@cache
def decoder() -> Decoder:
    return Decoder(open_base(BASE), backward="int8x2")


@cache
def _head() -> Head:
    return Head(open_base(BASE).head)
