"""Documents become batches: shuffled from a seed, packed into sequences of one length, masked.

Shapes: s sequences, t tokens of a sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import count, islice

import numpy as np
from numpy.typing import NDArray

from sterna.train.tokens import Corpus, Tokens

IGNORED = -1
"""Target of a position that is not learned."""

SHUFFLED_ROWS = 256
"""Rows shuffled together: a long document fills many rows in turn, and they should not make one batch."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs int64 [s, t] and what follows each, int64 [s, t], IGNORED where it does not count."""

    inputs: NDArray[np.int64]
    targets: NDArray[np.int64]


def training_batches(
    corpora: Sequence[Corpus], *, seed: int, round_: int, sequences: int, length: int
) -> Iterator[Batch]:
    """Batches without end from the training sides of all corpora; the same arguments give the same batches.

    Every document is read once before any is read again. Each round shuffles anew.
    """
    rows = _training_rows(corpora, seed=seed, round_=round_, length=length)
    while True:
        yield _batch([next(rows) for _ in range(sequences)])


def held_out_batches(corpus: Corpus, *, sequences: int, length: int, limit_tokens: int) -> Iterator[Batch]:
    """The held-out side in the order of the file, at most about ``limit_tokens`` positions of it."""
    rows: list[tuple[NDArray[np.int32], NDArray[np.int32]]] = []
    for number, row in enumerate(_pack(corpus.held_out, whole=corpus.masked, length=length)):
        if number * length >= limit_tokens:
            break
        rows.append(row)
        if len(rows) == sequences:
            yield _batch(rows)
            rows = []
    if rows:
        yield _batch(rows)


_Row = tuple[NDArray[np.int32], NDArray[np.int32]]


def _training_rows(corpora: Sequence[Corpus], *, seed: int, round_: int, length: int) -> Iterator[_Row]:
    documents = [document for corpus in corpora for document in corpus.train]
    whole = any(corpus.masked for corpus in corpora)

    for epoch in count():
        order = _order(len(documents), "documents", seed, round_, epoch)
        rows = _pack([documents[index] for index in order], whole=whole, length=length)
        for group in count():
            held = list(islice(rows, SHUFFLED_ROWS))
            if not held:
                break
            yield from (held[index] for index in _order(len(held), f"rows {group}", seed, round_, epoch))


def _order(size: int, what: str, seed: int, round_: int, number: int) -> list[int]:
    words = sha256(f"sterna/shuffle/1 {what} {seed} {round_} {number}".encode()).digest()
    order: list[int] = np.random.Generator(np.random.PCG64(list(words))).permutation(size).tolist()
    return order


def _pack(documents: Sequence[Tokens], *, whole: bool, length: int) -> Iterator[_Row]:
    """Rows (inputs, targets) of ``length``; the last may be partly empty, and none has nothing to learn.

    Plain text flows: a row ends wherever it is full. With conversations (``whole``) a document that does not
    fit any more starts the next row, and only one longer than a row is cut.
    """
    inputs, targets = _empty(length), _empty(length, IGNORED)
    used = 0
    for document in documents:
        # Position i sees token i and learns token i + 1.
        following = np.where(document.counts[1:], document.ids[1:], IGNORED).astype(np.int32)
        size, start = following.size, 0
        if whole and used > 0 and size > length - used:
            if (targets != IGNORED).any():
                yield inputs, targets
            inputs, targets, used = _empty(length), _empty(length, IGNORED), 0
        while start < size:
            taken = min(size - start, length - used)
            inputs[used : used + taken] = document.ids[start : start + taken]
            targets[used : used + taken] = following[start : start + taken]
            start, used = start + taken, used + taken
            if used == length:
                if (targets != IGNORED).any():
                    yield inputs, targets
                inputs, targets, used = _empty(length), _empty(length, IGNORED), 0
    if (targets != IGNORED).any():
        yield inputs, targets


def _empty(length: int, value: int = 0) -> NDArray[np.int32]:
    return np.full(length, value, np.int32)


def _batch(rows: Sequence[_Row]) -> Batch:
    return Batch(
        inputs=np.stack([row[0] for row in rows]).astype(np.int64),
        targets=np.stack([row[1] for row in rows]).astype(np.int64),
    )
