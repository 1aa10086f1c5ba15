"""The attacks on learning are those of byzfl, and the adaptive ones search as byzfl's do."""

from __future__ import annotations

import numpy as np
import pytest

from sterna.simulate.poison import POISONS, Poison, little, mimicry, noise, opposite, poisoned, worst_strength
from tests.support import byzfl


@pytest.fixture
def honest():
    return np.random.default_rng(3).standard_normal((9, 40)) + 0.3


@pytest.mark.parametrize(
    ("forge", "strength", "oracle"),
    [
        (opposite, 1.0, byzfl.SignFlipping()),
        (opposite, 0.6, byzfl.InnerProductManipulation(tau=0.6)),
        (little, 1.5, byzfl.ALittleIsEnough(tau=1.5)),
        (mimicry, 1.0, byzfl.Mimic(0)),
    ],
    ids=["sign-flip", "ipm", "alie", "mimic"],
)
def test_an_attack_is_that_of_byzfl(forge, strength, oracle, honest):
    assert np.abs(forge(honest, strength) - oracle(honest)).max() <= 1e-12


@pytest.mark.parametrize(
    ("forge", "oracle"),
    [
        (opposite, byzfl.Optimal_InnerProductManipulation),
        (little, byzfl.Optimal_ALittleIsEnough),
    ],
    ids=["ipm", "alie"],
)
@pytest.mark.parametrize("cut", [1, 3])
def test_an_adaptive_attack_finds_what_that_of_byzfl_finds(forge, oracle, cut, honest):
    def merged(vector):
        slate = np.concatenate([honest, np.tile(vector, (3, 1))])
        return byzfl.TrMean(cut)(byzfl.NNM(cut)(slate))

    expected = oracle(agg=byzfl.TrMean(cut), pre_agg_list=[byzfl.NNM(cut)], f=3)(honest)
    assert np.abs(poisoned(Poison(forge, adapts=True), list(honest), merged) - expected).max() <= 1e-9


def test_noise_is_as_long_as_told_and_the_same_again(honest):
    one, again = noise(honest, 10.0), noise(honest, 10.0)
    assert np.array_equal(one, again)
    assert 5.0 < np.linalg.norm(one) / np.linalg.norm(honest, axis=1).mean() < 15.0


def test_a_search_stays_at_zero_where_nothing_does_damage():
    assert worst_strength(lambda strength: -strength) == 0.0


def test_a_search_follows_damage_that_grows_and_settles_near_its_peak():
    for peak in (12.0, 90.0):
        found = worst_strength(lambda strength, peak=peak: -abs(strength - peak))
        assert abs(found - peak) < 0.2 * peak


def test_wrong_labels_cannot_be_forged(honest):
    with pytest.raises(ValueError, match="trained"):
        poisoned(POISONS["label-flip"], list(honest), lambda vector: vector)
