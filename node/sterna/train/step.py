"""One round of local training: H steps of AdamW on the round's subspace, from the batches of a corpus."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sterna.errors import WorkerFailed
from sterna.train.batches import IGNORED, Batch, training_batches
from sterna.train.lora import Lora
from sterna.train.loss import Head, cross_entropy
from sterna.train.model import KEEP_ALL, Decoder, Keeping
from sterna.train.tokens import Corpus
from sterna_protocol.swarm.charter import Recipe

BETAS = (0.9, 0.999)
EPSILON = 1e-8
MAX_GRADIENT_NORM = 1.0
"""Longer gradients are shortened to this: a single odd batch must not throw the round."""

MICRO_BATCH_TOKENS = 2048
"""Tokens that go through the model at once; a step with more adds up gradients."""

BLOCK = 1 << 18
"""Values that the optimiser moves at once: what it holds of them stays in the cache."""

EXACT_SHARE = 8
"""Activations are kept as they are up to this part of what they may take: small bases are, large ones not."""

OnStep = Callable[[int, float], None]
"""Called after each step with its number, from 1, and its loss in nats per token."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What a round took. ``loss``: mean over its steps, nats per token."""

    steps: int
    tokens: int
    loss: float


class AdamW:
    """Adam (arXiv:1412.6980) on one flat vector; nothing decays, for B starts at zero and stays small."""

    def __init__(self, values: Tensor) -> None:
        self._values = values
        self._mean = torch.zeros_like(values)
        self._square = torch.zeros_like(values)
        self._steps = 0

    @torch.no_grad()
    def step(self, gradient: Tensor, *, rate: float) -> None:
        """Move the values against ``gradient``."""
        self._steps += 1
        first, second = BETAS
        everything = (self._values, self._mean, self._square, gradient)
        for values, mean, square, g in zip(*(torch.split(t, BLOCK) for t in everything), strict=True):
            mean.lerp_(g, 1 - first)
            square.mul_(second).addcmul_(g, g, value=1 - second)
            size = (square / (1 - second**self._steps)).sqrt_().add_(EPSILON)
            values.addcdiv_(mean, size, value=-rate / (1 - first**self._steps))


def rate_at(recipe: Recipe, step: int) -> float:
    """Learning rate of step ``step``, from 0: a linear warm-up, then constant."""
    return recipe.learning_rate_micros * 1e-6 * min(1.0, (step + 1) / (recipe.warmup_steps + 1))


def train_round(
    decoder: Decoder,
    head: Head,
    lora: Lora,
    corpora: Sequence[Corpus],
    recipe: Recipe,
    *,
    seed: int,
    round_: int,
    sequences_factor: int = 1,
    keeping: Keeping = KEEP_ALL,
    on_step: OnStep | None = None,
) -> Trained:
    """Train ``lora.values`` in place with a fresh optimiser.

    Args:
        sequences_factor: multiplies the sequences of a step.
        keeping: see ``keeping_within``.

    Raises:
        WorkerFailed: the loss is no longer a number.
    """
    batches = training_batches(
        corpora,
        seed=seed,
        round_=round_,
        sequences=recipe.sequences_per_step * sequences_factor,
        length=recipe.tokens_per_sequence,
    )
    optimiser = AdamW(lora.values)
    tokens, losses = 0, 0.0
    for step in range(recipe.steps):
        loss, counted = train_step(
            decoder, head, lora, next(batches), optimiser, rate=rate_at(recipe, step), keeping=keeping
        )
        if not math.isfinite(loss):
            rate = recipe.learning_rate_micros
            raise WorkerFailed(
                f"the loss is {loss} at step {step + 1}: learning_rate_micros {rate} is too high"
            )
        tokens, losses = tokens + counted, losses + loss
        if on_step is not None:
            on_step(step + 1, loss)
    return Trained(steps=recipe.steps, tokens=tokens, loss=losses / recipe.steps)


def train_step(
    decoder: Decoder,
    head: Head,
    lora: Lora,
    batch: Batch,
    optimiser: AdamW,
    *,
    rate: float,
    keeping: Keeping,
) -> tuple[float, int]:
    """One step on ``lora.values``, which stay as they are when the loss is no longer a number.

    Returns: the mean loss in nats per token, and the tokens it was counted over.
    """
    loss, counted = _gradient(decoder, head, lora, batch, keeping)
    if math.isfinite(loss):
        optimiser.step(_clipped(lora), rate=rate)
        lora.values_changed()
    return loss, counted


def keeping_within(decoder: Decoder, recipe: Recipe, *, budget_bytes: int) -> Keeping:
    """What to keep in ``budget_bytes``: all as it is, or else rounded, or else only of the last layers."""
    tokens = min(MICRO_BATCH_TOKENS, recipe.sequences_per_step * recipe.tokens_per_sequence)
    tokens = max(tokens, recipe.tokens_per_sequence)
    layers = decoder.architecture.layers
    if layers * decoder.activation_bytes(tokens, rounded=False) <= budget_bytes // EXACT_SHARE:
        return KEEP_ALL
    kept = budget_bytes // decoder.activation_bytes(tokens, rounded=True)
    return Keeping(rounded=True, recomputed=max(0, layers - kept))


def _gradient(decoder: Decoder, head: Head, lora: Lora, batch: Batch, keeping: Keeping) -> tuple[float, int]:
    """Fill ``lora.gradient`` with that of the mean loss over the batch; returns the loss and its tokens."""
    assert lora.gradient is not None  # for mypy: an adapter that trains has one
    lora.gradient.zero_()
    counted = int((batch.targets != IGNORED).sum())
    total = 0.0
    for part in _micro_batches(batch):
        h = decoder.hidden(part.inputs, lora=lora, keeping=keeping)
        loss = cross_entropy(h, part.targets, head) / counted
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total, counted


def _micro_batches(batch: Batch) -> Iterator[Batch]:
    sequences, length = batch.inputs.shape
    pieces = math.ceil(sequences / max(1, MICRO_BATCH_TOKENS // length))
    inputs, targets = np.array_split(batch.inputs, pieces), np.array_split(batch.targets, pieces)
    yield from (Batch(inputs=a, targets=b) for a, b in zip(inputs, targets, strict=True))


def _clipped(lora: Lora) -> Tensor:
    assert lora.gradient is not None  # for mypy, as above
    norm = lora.gradient.norm().item()
    return lora.gradient if norm <= MAX_GRADIENT_NORM else lora.gradient.mul_(MAX_GRADIENT_NORM / norm)
