"""Held-out loss in nats per token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sterna.train.batches import IGNORED, held_out_batches
from sterna.train.loss import Head, cross_entropy
from sterna.train.model import Correction, Decoder
from sterna.train.tokens import Corpus

SEQUENCES = 8
"""Sequences that go through the model at once."""

MAX_HELD_OUT_TOKENS = 65536
"""Of each file at most so much is read: the standard error of a loss over this many tokens is about 0.01."""


@dataclass(frozen=True, slots=True)
class HeldOutLoss:
    """``loss``: nats per token over all files together; ``by_file``: of each alone."""

    loss: float
    tokens: int
    by_file: tuple[float, ...]


@torch.no_grad()
def held_out_loss(
    decoder: Decoder,
    head: Head,
    lora: Correction | None,
    corpora: Sequence[Corpus],
    *,
    length: int,
    limit_tokens: int = MAX_HELD_OUT_TOKENS,
) -> HeldOutLoss:
    """The loss on the held-out sides of all corpora, cut into sequences of ``length``."""
    totals = []
    for corpus in corpora:
        nats, tokens = 0.0, 0
        for batch in held_out_batches(corpus, sequences=SEQUENCES, length=length, limit_tokens=limit_tokens):
            nats += cross_entropy(decoder.hidden(batch.inputs, lora=lora), batch.targets, head).item()
            tokens += int((batch.targets != IGNORED).sum())
        totals.append((nats, tokens))
    everything = sum(tokens for _, tokens in totals)
    return HeldOutLoss(
        loss=sum(nats for nats, _ in totals) / everything,
        tokens=everything,
        by_file=tuple(nats / tokens for nats, tokens in totals),
    )
