"""Batches are the same for the same seed, hold every document once a pass, and learn what counts."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.train.batches import IGNORED, held_out_batches, training_batches
from sterna.train.tokens import Corpus, Tokens


def corpus_of(sizes, *, masked=False, held_out=(5,)) -> Corpus:
    """Documents whose tokens are all different numbers; with ``masked`` only their second halves count."""
    start = 1

    def document(size: int) -> Tokens:
        nonlocal start
        ids = np.arange(start, start + size, dtype=np.int32)
        start += size
        return Tokens(ids=ids, counts=np.arange(size) >= (size // 2 if masked else 0))

    train = tuple(document(size) for size in sizes)
    return Corpus(train=train, held_out=tuple(document(size) for size in held_out), masked=masked)


def taken(corpus: Corpus, *, seed=0, round_=0, count=6, sequences=2, length=8):
    batches = training_batches([corpus], seed=seed, round_=round_, sequences=sequences, length=length)
    return list(islice(batches, count))


def same(a, b) -> bool:
    return all(
        np.array_equal(x.inputs, y.inputs) and np.array_equal(x.targets, y.targets)
        for x, y in zip(a, b, strict=True)
    )


def test_seed_and_round_choose_the_batches():
    corpus = corpus_of([9] * 30)
    assert same(taken(corpus), taken(corpus))
    assert not same(taken(corpus), taken(corpus, seed=1))
    assert not same(taken(corpus), taken(corpus, round_=1))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(2, 30), min_size=1, max_size=12), st.integers(2, 12), st.booleans())
def test_every_counted_token_is_a_target_behind_its_predecessor(sizes, length, masked):
    corpus = corpus_of(sizes, masked=masked)
    wanted = {
        int(token)
        for d in corpus.train
        for token, counts in zip(d.ids[1:], d.counts[1:], strict=True)
        if counts
    }
    seen = set()
    # One pass has at most a row a document more than its tokens fill, 12 documents of 30 tokens in rows of 2.
    for batch in islice(training_batches([corpus], seed=0, round_=0, sequences=4, length=length), 48):
        for inputs, targets in zip(batch.inputs, batch.targets, strict=True):
            counted = targets != IGNORED
            assert counted.any()
            assert (inputs[counted] + 1 == targets[counted]).all()
            seen |= set(targets[counted].tolist())
    assert seen == wanted


def test_a_pass_reads_each_document_once_before_any_is_read_again():
    corpus = corpus_of([9] * 16)  # 8 targets each: a row of 8
    rows = np.concatenate([batch.targets for batch in taken(corpus, count=8, sequences=2)])
    assert len(set(rows[:, 0].tolist())) == 16


def test_conversations_are_not_cut_unless_they_are_longer_than_a_row():
    corpus = corpus_of([7, 7, 7, 20], masked=True)
    starts = {int(document.ids[0]): document.ids.size for document in corpus.train}
    for batch in taken(corpus, count=20, length=8):
        for inputs in batch.inputs:
            for start, size in starts.items():
                if size == 7 and start in inputs:
                    at = inputs.tolist().index(start)
                    assert inputs[at : at + 6].tolist() == list(range(start, start + 6))


def test_several_corpora_are_mixed():
    first, second = corpus_of([9] * 10), corpus_of([9] * 10)
    for document in second.train:
        document.ids[:] += 1000
    batches = islice(training_batches([first, second], seed=0, round_=0, sequences=4, length=8), 5)
    tokens = np.concatenate([batch.inputs for batch in batches])
    assert (tokens < 1000).any()
    assert (tokens >= 1000).any()


@pytest.mark.parametrize("masked", [True, False])
def test_held_out_documents_are_never_trained_on(masked):
    corpus = corpus_of([9] * 20, masked=masked, held_out=(9, 9, 9))
    held_out = {int(token) for document in corpus.held_out for token in document.ids}
    trained = {int(token) for batch in taken(corpus, count=60) for token in batch.inputs.flatten()}
    assert not held_out & trained


def test_each_held_out_token_that_counts_is_judged_once_and_in_order():
    corpus = corpus_of([9], held_out=(9, 3, 30))
    batches = held_out_batches(corpus, sequences=2, length=8, limit_tokens=10**6)
    targets = np.concatenate([batch.targets.flatten() for batch in batches])
    expected = [token for document in corpus.held_out for token in document.ids[1:].tolist()]
    assert targets[targets != IGNORED].tolist() == expected


def test_the_limit_on_held_out_tokens_is_kept():
    corpus = corpus_of([9], held_out=(9,) * 40)
    batches = list(held_out_batches(corpus, sequences=2, length=8, limit_tokens=40))
    assert sum(batch.targets.size for batch in batches) == 40
