"""What a sparse codec leaves out is sent later: nothing is lost and nothing is sent twice."""

from __future__ import annotations

import numpy as np
import pytest

from sterna_protocol.errors import LocalProtocolError, MalformedMessage
from sterna_protocol.merge.codec import dequantise, encode_delta, quantise
from sterna_protocol.merge.feedback import Unsent, encode_total, needs_feedback, overshot, remaining
from sterna_protocol.merge.scheme import delta_size
from tests.support.charters import small_charter

AUTHOR = b"a" * 32
CHARTER = small_charter(codec="top2", layers=20)
SIZE = delta_size(CHARTER.adapter)


def sent(total: np.ndarray, round_: int) -> tuple[bytes, np.ndarray]:
    """The blob of the delta of ``total``, and its values."""
    delta = quantise(overshot(total), "top2")
    return encode_delta(CHARTER, author=AUTHOR, round_=round_, delta=delta), dequantise(delta)


def test_only_the_sparse_codec_needs_it():
    codecs = ("int8", "int4", "ternary", "top2")
    assert [codec for codec in codecs if needs_feedback(small_charter(codec=codec))] == ["top2"]


def test_a_delta_that_was_merged_is_taken_off_and_one_that_was_not_is_credited_whole():
    total = np.random.default_rng(0).normal(0, 0.01, SIZE).astype(np.float32)
    blob, values = sent(total, 3)
    assert values.any()
    left = remaining(CHARTER, AUTHOR, Unsent(3, encode_total(total), blob))
    np.testing.assert_array_equal(left, total - values)
    np.testing.assert_array_equal(remaining(CHARTER, AUTHOR, Unsent(3, encode_total(total), None)), total)


def test_half_too_much_is_sent_and_taken_back_by_the_next_delta():
    total = np.random.default_rng(0).normal(0, 0.01, SIZE).astype(np.float32)
    blob, values = sent(total, 3)
    kept = values != 0
    assert 1.4 < np.dot(values, total) / np.square(total[kept]).sum() < 1.6
    left = remaining(CHARTER, AUTHOR, Unsent(3, encode_total(total), blob))
    assert -0.6 < np.dot(left[kept], total[kept]) / np.square(total[kept]).sum() < -0.4
    # Each element is nearer to done than it was, so that nothing swings higher and higher.
    assert (np.abs(left[kept]) < np.abs(total[kept])).all()


@pytest.mark.parametrize("seed", range(5))
def test_over_many_rounds_what_is_merged_and_what_is_left_is_what_was_learned(seed: int):
    rng = np.random.default_rng(seed)
    unsent = None
    learned, merged = np.zeros(SIZE), np.zeros(SIZE)
    for round_ in range(40):
        values = rng.normal(0, 0.01, SIZE).astype(np.float32)
        learned += values
        if unsent is not None:
            values = values + remaining(CHARTER, AUTHOR, unsent)
        blob, codes = sent(values, round_)
        is_merged = rng.random() < 0.6
        merged += codes * is_merged
        unsent = Unsent(round_, encode_total(values), blob if is_merged else None)
    left = remaining(CHARTER, AUTHOR, unsent)
    np.testing.assert_allclose(merged + left, learned, atol=1e-5)
    # What is left stays bounded: each element's turn comes.
    assert np.abs(left).mean() < 0.2 * np.abs(learned).mean() + 0.1


def test_another_ones_delta_is_not_taken_off():
    total = np.ones(SIZE, np.float32)
    blob, _ = sent(total, 3)
    with pytest.raises(MalformedMessage):
        remaining(CHARTER, b"b" * 32, Unsent(3, encode_total(total), blob))
    with pytest.raises(MalformedMessage):
        remaining(CHARTER, AUTHOR, Unsent(4, encode_total(total), blob))


def test_a_residual_of_another_size_is_refused():
    with pytest.raises(LocalProtocolError, match="a residual of 4 bytes"):
        remaining(CHARTER, AUTHOR, Unsent(3, bytes(4), None))
