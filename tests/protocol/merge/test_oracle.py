"""The rules beside byzfl's: on floats they are the same, and the integer ones are the float ones rounded."""

from __future__ import annotations

import numpy as np
import pytest

from sterna_protocol.merge.adapter import genesis_adapter
from sterna_protocol.merge.codec import dequantise
from sterna_protocol.merge.rules import merge
from tests.protocol.merge import floats
from tests.protocol.merge.deltas import random_slate
from tests.support import byzfl
from tests.support.charters import small_charter

CASES = 10_000
UNIT = 2.0**-24
"""Of the adapter's state: half of it is what the one rounding of a merge may cost."""


def random_case(rng):
    """(vectors [d, n], cut): 2 to 12 vectors of 1 to 24 elements, of any scale, some of them alike."""
    count, size = int(rng.integers(2, 13)), int(rng.integers(1, 25))
    vectors = rng.standard_normal((count, size)) * 10.0 ** rng.integers(-3, 4, (count, 1))
    return vectors + rng.standard_normal(size), int(rng.integers(0, (count + 1) // 2))


def lower_median_length(vectors):
    return float(np.sort(np.linalg.norm(vectors, axis=1))[(len(vectors) - 1) // 2])


def assert_same(ours, theirs, vectors, what):
    difference = np.abs(ours - theirs).max() / max(1.0, np.abs(vectors).max())
    assert difference <= 1e-12, (what, difference)


@pytest.mark.slow
def test_the_rules_on_floats_are_those_of_byzfl():
    rng = np.random.default_rng(4)
    for case in range(CASES):
        vectors, cut = random_case(rng)
        near = byzfl.NNM(cut)(vectors)
        for what, ours, theirs in (
            ("mean", floats.mean(vectors), byzfl.Average()(vectors)),
            ("median", floats.median(vectors), byzfl.Median()(vectors)),
            ("trimmed", floats.trimmed(vectors, cut), byzfl.TrMean(cut)(vectors)),
            ("mixed", floats.mixed(vectors, cut), near),
            (
                "nnm+trimmed",
                floats.trimmed(floats.mixed(vectors, cut), cut),
                byzfl.TrMean(cut)(near),
            ),
            (
                "clip",
                floats.clipped(vectors),
                byzfl.Clipping(lower_median_length(vectors))(vectors.copy()),
            ),
        ):
            assert_same(ours, theirs, vectors, (case, what))


def test_the_filter_on_floats_is_that_of_byzfl_from_the_same_start(monkeypatch):
    rng = np.random.default_rng(5)
    for case in range(CASES // 10):
        vectors, cut = rng.standard_normal(rng.integers((6, 4), (13, 25))), int(rng.integers(1, 3))
        theirs, ours = np.random.default_rng(case), np.random.default_rng(case)
        monkeypatch.setattr(np.random, "randn", theirs.standard_normal)

        def one_step(differences, masses, rng=ours):
            start = rng.standard_normal(differences.shape[1])
            along = (masses * (differences @ (start / np.linalg.norm(start)))) @ differences / masses.sum()
            length = np.linalg.norm(along)
            return along / length, length

        expected = byzfl.CAF(cut)(vectors)
        assert_same(floats.filtered(vectors, cut, one_step, forgets=False), expected, vectors, case)


@pytest.mark.parametrize("codec", ["int8", "int4", "ternary"])
@pytest.mark.parametrize(
    ("rule", "on_floats"),
    [
        ("mean", lambda vectors, cut: floats.mean(vectors)),
        ("median", lambda vectors, cut: floats.median(vectors)),
        ("trimmed", floats.trimmed),
        ("nnm+trimmed", lambda vectors, cut: floats.trimmed(floats.mixed(vectors, cut), cut)),
    ],
)
def test_a_rule_in_integers_is_the_one_on_floats_rounded_once(rule, on_floats, codec):
    rng = np.random.default_rng(6)
    for _ in range(40):
        count, trim = int(rng.integers(2, 13)), int(rng.integers(0, 46))
        charter = small_charter(rule=rule, codec=codec, scheme="fixed", trim_percent=trim)
        slate = random_slate(charter, rng, count, round_=5, late=False)
        vectors = np.stack([dequantise(delta).astype(np.float64) for _, delta in slate])
        merged = merge(charter, genesis_adapter(charter), slate, 5).state[0] * UNIT
        expected = on_floats(vectors, count * trim // 100)
        assert np.abs(merged - expected).max() <= 0.5 * UNIT + 1e-12


@pytest.mark.parametrize("codec", ["int8", "int4", "ternary"])
@pytest.mark.parametrize(
    ("rule", "on_floats"),
    [
        ("clip+mean", lambda vectors, cut: floats.mean(floats.clipped(vectors))),
        (
            "clip+filter",
            lambda vectors, cut: floats.filtered(floats.clipped(vectors), cut, floats.from_the_farthest),
        ),
    ],
)
def test_a_rule_with_factors_in_integers_is_within_half_a_step_of_its_deltas(rule, on_floats, codec):
    rng = np.random.default_rng(7)
    for _ in range(40):
        count, trim = int(rng.integers(2, 13)), int(rng.integers(0, 46))
        charter = small_charter(rule=rule, codec=codec, scheme="fixed", trim_percent=trim)
        slate = random_slate(charter, rng, count, round_=5, late=False)
        vectors = np.stack([dequantise(delta).astype(np.float64) for _, delta in slate])
        merged = merge(charter, genesis_adapter(charter), slate, 5).state[0] * UNIT
        step = 2.0 ** max(int(delta.exponents.max()) for _, delta in slate)
        expected = on_floats(vectors, count * trim // 100)
        assert np.abs(merged - expected).max() <= 0.5 * step
