"""Many peers in one process: each has its own share of the texts, all train over one open base.

The shares are not alike, as they would not be among strangers: under ``source`` each peer has passages of
one text, as far as they last; under ``dirichlet`` it has passages of all, in proportions drawn for it from a
Dirichlet distribution (arXiv:1909.06335).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sterna.errors import DataError
from sterna.train.base import Base
from sterna.train.batches import IGNORED, Batch, training_batches
from sterna.train.delta import learned
from sterna.train.evaluate import held_out_loss
from sterna.train.lora import Lora, float_state
from sterna.train.loss import Head
from sterna.train.model import Decoder
from sterna.train.parallel import train_side_by_side
from sterna.train.text import read_split
from sterna.train.tokens import Corpus, TextCodec, Tokens
from sterna_protocol.merge.adapter import Adapter
from sterna_protocol.swarm.charter import Charter, Recipe
from sterna_protocol.swarm.defaults import Linears

Sharing = Literal["source", "dirichlet"]

CONCENTRATION = 0.3
"""Of the Dirichlet distribution: most peers then have half of their passages or more from one text."""

HELD_OUT_TOKENS = 4096
"""Of each text: the standard error of a loss over all of them is about 0.015, but the runs that are compared
are judged on the same tokens, so that their difference is sharper."""

TOKENS_TOGETHER = 1024
"""Tokens that go through the base at once: a tiny base's activations then take about two L2 caches."""


class Crowd:
    """An open base, and the texts as ``peers`` peers share them."""

    def __init__(self, base: Base, texts: Sequence[Path], *, peers: int, sharing: Sharing, seed: int) -> None:
        """
        Raises:
            DataError: a text cannot be read, or there are fewer passages than peers.
        """
        self._architecture = base.architecture
        self._decoder = Decoder(base, backward="int8x2")
        self._head = Head(base.head)
        codec = TextCodec(base.tokenizer_json)
        self._texts = [codec.corpus(read_split(path), path) for path in texts]
        self._seed = seed
        self._shares = shared([corpus.train for corpus in self._texts], peers, sharing, seed)

    @property
    def layers(self) -> int:
        return self._architecture.layers

    @property
    def linears(self) -> Linears:
        return self._architecture.linears_of_a_layer()

    def train(
        self,
        charter: Charter,
        adapter: Adapter,
        *,
        round_: int,
        peers: Sequence[int],
        mislabelled: Collection[int],
    ) -> list[NDArray[np.float32]]:
        """What each of ``peers`` learns in a round from ``adapter`` on: float32 [n], not quantised yet.

        Args:
            mislabelled: those who learn wrong tokens, as attackers do.

        Raises:
            WorkerFailed: the training diverged.
        """
        recipe, state = charter.recipe, float_state(adapter)
        together = max(1, TOKENS_TOGETHER // (recipe.sequences_per_step * recipe.tokens_per_sequence))
        deltas: list[NDArray[np.float32]] = []
        for first in range(0, len(peers), together):
            group = peers[first : first + together]
            batches = [self._batches(peer, recipe, round_, peer in mislabelled) for peer in group]
            trained = train_side_by_side(
                self._decoder, self._head, charter.adapter, state, batches, recipe, round_=round_
            )
            deltas += [learned(charter, adapter, values, round_) for values in trained]
        return deltas

    def loss(self, charter: Charter, adapter: Adapter) -> float:
        """Nats per token of the adapter on passages of all texts that nobody trains on."""
        lora = Lora(charter.adapter, float_state(adapter), trained=None)
        return held_out_loss(
            self._decoder,
            self._head,
            lora,
            self._texts,
            length=charter.recipe.tokens_per_sequence,
            limit_tokens=HELD_OUT_TOKENS,
        ).loss

    def _batches(self, peer: int, recipe: Recipe, round_: int, is_mislabelled: bool) -> Iterator[Batch]:
        batches = training_batches(
            [Corpus(train=self._shares[peer], held_out=(), masked=False)],
            seed=1000 * self._seed + peer,
            round_=round_,
            sequences=recipe.sequences_per_step,
            length=recipe.tokens_per_sequence,
        )
        return _mislabelled(batches, self._architecture.vocab_size) if is_mislabelled else batches


def shared(
    texts: Sequence[Sequence[Tokens]], peers: int, sharing: Sharing, seed: int
) -> list[tuple[Tokens, ...]]:
    """The passages of each peer: all have the same number, no passage has two owners.

    Raises:
        DataError: there are fewer passages than peers.
    """
    each = sum(map(len, texts)) // peers
    if each == 0:
        raise DataError(
            f"{sum(map(len, texts))} passages for {peers} peers: give longer texts or fewer --peers"
        )
    words = sha256(f"sterna/shares/1 {sharing} {seed}".encode()).digest()
    rng = np.random.Generator(np.random.PCG64(list(words)))
    left = [[text[place] for place in rng.permutation(len(text))] for text in texts]
    shares = []
    for peer in range(peers):
        if sharing == "source":
            wanted = np.eye(len(texts))[peer % len(texts)]
        else:
            wanted = rng.dirichlet([CONCENTRATION] * len(texts))
        shares.append(tuple(_drawn(left, wanted, each, rng)))
    return shares


def _drawn(
    left: list[list[Tokens]], wanted: NDArray[np.float64], count: int, rng: np.random.Generator
) -> Iterator[Tokens]:
    """``count`` passages from texts drawn in the ``wanted`` proportions; of an empty text, the fullest."""
    for text in rng.choice(len(left), size=count, p=wanted).tolist():
        source = left[text] or max(left, key=len)
        yield source.pop()


def _mislabelled(batches: Iterator[Batch], vocab_size: int) -> Iterator[Batch]:
    """Every token that is to be learned becomes the one at the other end of the vocabulary."""
    for batch in batches:
        wrong = np.where(batch.targets == IGNORED, IGNORED, vocab_size - 1 - batch.targets)
        yield Batch(inputs=batch.inputs, targets=wrong)
