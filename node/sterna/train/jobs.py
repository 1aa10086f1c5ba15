"""The jobs of a worker, as plain functions over an open base: train, train alone, evaluate, generate."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sterna.errors import ConfigError
from sterna.train.base import Architecture, open_base
from sterna.train.delta import delta_blob
from sterna.train.evaluate import MAX_HELD_OUT_TOKENS, HeldOutLoss, held_out_loss
from sterna.train.generate import generate
from sterna.train.given import read_given
from sterna.train.lora import Lora, float_state, lora_of_round
from sterna.train.loss import Head
from sterna.train.model import Correction, Decoder, Keeping
from sterna.train.step import Trained, keeping_within, train_round
from sterna.train.text import Turn, read_split
from sterna.train.tokens import Corpus, TextCodec
from sterna_kernels.torch import Backward
from sterna_protocol.merge.adapter import Adapter, decode_adapter, genesis_adapter
from sterna_protocol.merge.feedback import Unsent
from sterna_protocol.merge.scheme import subspace_of
from sterna_protocol.swarm.charter import AdapterScheme, Charter

FIGURE_TOKENS = 2048
"""Held-out tokens behind the losses before and after a round: the same ones, so their difference is sharp."""

Progress = Callable[[int, int, float], None]
"""Called with (steps done, steps in all, loss of the step in nats per token)."""


@dataclass(frozen=True, slots=True)
class RoundResult:
    """A trained round: its delta blob, what that was quantised from if it leaves something out, and what the
    author says of it."""

    delta_blob: bytes
    total: bytes | None
    trained: Trained
    loss_before: float
    loss_after: float
    milliseconds: int


class Workshop:
    """An open base with everything that is worth keeping between jobs."""

    def __init__(
        self, base: Path, *, backward: Backward, activation_bytes: int, returns_pages: bool = False
    ) -> None:
        """Raises ConfigError or StorageError: ``base`` is not a base file or cannot be read.

        Args:
            returns_pages: training and judging hold little of the base in memory.
        """
        opened = open_base(base)
        self.codec = TextCodec(opened.tokenizer_json)
        self._decoder = Decoder(opened, backward=backward, returns_pages=returns_pages)
        self._head = Head(opened.head, returns_pages=returns_pages)
        self._activation_bytes = activation_bytes
        self._corpora: dict[tuple[str, int, int], Corpus] = {}

    def train(
        self,
        charter: Charter,
        adapter: bytes,
        *,
        round_: int,
        author: bytes,
        data: Path,
        seed: int,
        progress: Progress,
        unsent: Unsent | None = None,
    ) -> RoundResult:
        """One round of this peer.

        Raises:
            DataError: the data cannot be trained on.
            ConfigError: charter and base do not fit together.
            MalformedMessage: ``adapter`` is not one of this swarm.
            WorkerFailed: the training diverged.
        """
        started = time.monotonic()
        self._check(charter)
        corpus = self._corpus(data)
        previous = decode_adapter(charter, adapter)
        lora = lora_of_round(charter.adapter, float_state(previous), round_)
        before = self._figure(lora, corpus, charter)
        steps = charter.recipe.steps
        trained = train_round(
            self._decoder,
            self._head,
            lora,
            [corpus],
            charter.recipe,
            seed=seed,
            round_=round_,
            keeping=self._keeping(charter),
            on_step=lambda step, loss: progress(step, steps, loss),
        )
        blob, total = delta_blob(
            charter, previous, lora.values.numpy(), author=author, round_=round_, unsent=unsent
        )
        return RoundResult(
            delta_blob=blob,
            total=total,
            trained=trained,
            loss_before=before,
            loss_after=self._figure(lora, corpus, charter),
            milliseconds=int(1000 * (time.monotonic() - started)),
        )

    def train_alone(
        self,
        charter: Charter,
        *,
        rounds: int,
        data: Sequence[Path],
        held_out: Sequence[Path],
        seed: int,
        sequences_factor: int,
        every_round: bool,
        progress: Progress,
    ) -> tuple[HeldOutLoss, ...]:
        """The held-out loss after ``rounds`` rounds without a swarm.

        The state stays in float32 and nothing is quantised or averaged; subspaces take turns as in a swarm.

        Args:
            every_round: give the loss before training and after each round, not the last alone.

        Raises:
            DataError, ConfigError, WorkerFailed: as ``train``.
        """
        self._check(charter)
        corpora = [self._corpus(path) for path in data]
        judges = [self._corpus(path) for path in held_out]
        state = float_state(genesis_adapter(charter))
        losses = [self._judged(charter.adapter, state, judges, charter)] if every_round else []
        steps = charter.recipe.steps
        for round_ in range(rounds):
            lora = lora_of_round(charter.adapter, state, round_)
            train_round(
                self._decoder,
                self._head,
                lora,
                corpora,
                charter.recipe,
                seed=seed,
                round_=round_,
                sequences_factor=sequences_factor,
                keeping=self._keeping(charter),
                on_step=lambda step, loss, done=round_ * steps: progress(done + step, rounds * steps, loss),  # type: ignore[misc]
            )
            state[subspace_of(charter.adapter, round_)] = lora.values.numpy()
            if every_round or round_ == rounds - 1:
                losses.append(self._judged(charter.adapter, state, judges, charter))
        return tuple(losses)

    def evaluate(
        self,
        charter: Charter,
        adapter: bytes | None,
        held_out: Sequence[Path],
        *,
        limit_tokens: int | None = None,
    ) -> HeldOutLoss:
        """The loss of the adapter, or of the base alone, on the held-out documents of the files.

        Raises:
            DataError, ConfigError, MalformedMessage: as ``train``.
        """
        self._check(charter)
        judges = [self._corpus(path) for path in held_out]
        previous = genesis_adapter(charter) if adapter is None else decode_adapter(charter, adapter)
        limit = MAX_HELD_OUT_TOKENS if limit_tokens is None else limit_tokens
        return self._judged(charter.adapter, float_state(previous), judges, charter, limit)

    def generate(
        self,
        charter: Charter | None,
        adapter: bytes | None,
        prompt: str | Sequence[Turn],
        *,
        given: Path | None = None,
        max_tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
    ) -> Iterator[str]:
        """Pieces of the continuation.

        Args:
            given: a file of an adapter (``sterna.train.given``), instead of a charter and its adapter.

        Raises:
            ConfigError: charter or file and base do not fit together, or as ``sterna.train.generate``.
            MalformedMessage: ``adapter`` is not one of this swarm.
        """
        lora: Correction | None = None
        if charter is not None and adapter is not None:
            self._check(charter)
            lora = self._used(charter, decode_adapter(charter, adapter))
        elif given is not None:
            linears = self._decoder.architecture.linears()
            lora = read_given(given, {name: (out, in_) for name, out, in_ in linears})
        ids = self.codec.prompt(prompt)
        yield from generate(
            self._decoder,
            self._head,
            lora,
            self.codec,
            ids,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        )

    def _check(self, charter: Charter) -> None:
        require_fits(charter, self._decoder.architecture)

    def _corpus(self, path: Path) -> Corpus:
        # A file that has not changed is not read and tokenised again each round.
        try:
            facts = path.stat()
            key = (str(path.resolve()), facts.st_size, facts.st_mtime_ns)
        except OSError:
            return self.codec.corpus(read_split(path), path)  # says what is wrong with the path
        if key not in self._corpora:
            self._corpora = {other: kept for other, kept in self._corpora.items() if other[0] != key[0]}
            self._corpora[key] = self.codec.corpus(read_split(path), path)
        return self._corpora[key]

    def _keeping(self, charter: Charter) -> Keeping:
        return keeping_within(self._decoder, charter.recipe, budget_bytes=self._activation_bytes)

    def _used(self, charter: Charter, adapter: Adapter) -> Lora:
        return Lora(charter.adapter, float_state(adapter), trained=None)

    def _figure(self, lora: Lora, corpus: Corpus, charter: Charter) -> float:
        length = charter.recipe.tokens_per_sequence
        return held_out_loss(
            self._decoder, self._head, lora, [corpus], length=length, limit_tokens=FIGURE_TOKENS
        ).loss

    def _judged(
        self,
        scheme: AdapterScheme,
        state: NDArray[np.float32],
        judges: Sequence[Corpus],
        charter: Charter,
        limit_tokens: int = MAX_HELD_OUT_TOKENS,
    ) -> HeldOutLoss:
        lora = Lora(scheme, state, trained=None)
        length = charter.recipe.tokens_per_sequence
        return held_out_loss(
            self._decoder, self._head, lora, judges, length=length, limit_tokens=limit_tokens
        )


def require_fits(charter: Charter, architecture: Architecture) -> None:
    """Return if the charter's adapter and recipe belong to a base of this architecture.

    Raises:
        ConfigError: they do not.
    """
    shapes = {name: (out, in_) for name, out, in_ in architecture.linears()}
    if charter.adapter.layers != architecture.layers:
        raise ConfigError(
            f"the charter adapts {charter.adapter.layers} layers, the base has {architecture.layers}"
        )
    for linear in charter.adapter.linears:
        shape = shapes.get(f"layers.0.{linear.name}")
        if shape != (linear.out_features, linear.in_features):
            raise ConfigError(
                f"the charter adapts {linear.name} [{linear.out_features}, {linear.in_features}], "
                f"the base has {shape or 'no such linear'}; this is another base than the swarm's"
            )
    if charter.recipe.tokens_per_sequence > architecture.max_context:
        raise ConfigError(
            f"the charter trains {charter.recipe.tokens_per_sequence} tokens a sequence, "
            f"the base reads {architecture.max_context}"
        )
