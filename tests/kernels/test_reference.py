"""What the reference itself promises; the variants are then compared with it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sterna_kernels import reference
from sterna_kernels.reference import ACTIVATION_FLOOR, GRADIENT_FLOOR, LIMIT, dither, quantise, split

floats = st.floats(-(2.0**100), 2.0**100, width=32)
rows = arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 40)), elements=floats)


@given(rows, st.sampled_from([1, 2]))
def test_a_code_times_its_step_is_within_half_a_step(x, limbs):
    codes, step = quantise(x, floor=GRADIENT_FLOOR, limbs=limbs)
    assert np.abs(codes).max() <= LIMIT[limbs]
    # x * (LIMIT / m) carries two roundings of 2^-24 each, the step one more.
    error = np.abs(codes * step[:, None].astype(np.float64) - x)
    largest = np.maximum(np.abs(x).max(axis=1, keepdims=True), GRADIENT_FLOOR).astype(np.float64)
    assert (error <= 0.5 * step[:, None] + largest * 4 * 2.0**-24).all()


def test_halves_round_to_even():
    x = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]], np.float32)
    codes, step = quantise(x, floor=ACTIVATION_FLOOR, limbs=1)
    assert codes.tolist() == [[127, 0, 2, 2, 0, -2, -2]]
    assert step == 1


def test_activations_below_the_floor_vanish_and_gradients_do_not():
    tiny = np.array([[1e-9, -1e-9]], np.float32)
    assert quantise(tiny, floor=ACTIVATION_FLOOR, limbs=1)[0].tolist() == [[0, 0]]
    assert quantise(tiny, floor=GRADIENT_FLOOR, limbs=1)[0].tolist() == [[127, -127]]


@given(rows)
def test_rounding_by_chance_is_off_by_less_than_a_step(x):
    codes, step = quantise(x, floor=GRADIENT_FLOOR, limbs=1, stochastic=True)
    assert np.abs(codes).max() <= LIMIT[1]
    error = np.abs(codes * step[:, None].astype(np.float64) - x)
    largest = np.maximum(np.abs(x).max(axis=1, keepdims=True), GRADIENT_FLOOR).astype(np.float64)
    assert (error <= step[:, None] + largest * 4 * 2.0**-24).all()


@pytest.mark.parametrize("value", [0.25, -0.25, 0.9, -7.125, 100.5])
def test_rounding_by_chance_is_right_on_average(value):
    x = np.full((500, 400), value, np.float32)
    x[:, 0] = 127
    codes, _ = quantise(x, floor=GRADIENT_FLOOR, limbs=1, stochastic=True)
    # Five standard deviations of a mean of so many coins, and of a mean over a column or a row of them.
    for axis, coins in ((None, 500 * 399), (0, 500), (1, 399)):
        assert np.abs(codes[:, 1:].mean(axis=axis) - value).max() <= 5 * 0.5 / np.sqrt(coins)


def test_chance_leaves_whole_codes_and_zeros_alone():
    x = np.array([[127, 3, 0, -0.0, -50, -127]], np.float32)
    codes, _ = quantise(x, floor=GRADIENT_FLOOR, limbs=1, stochastic=True)
    assert codes.tolist() == [[127, 3, 0, 0, -50, -127]]


def test_chance_is_drawn_anew_for_each_row_and_each_largest_value():
    drawn = dither(np.array([1, 1, 1.0000001], np.float32), 4000)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    for first, second in ((0, 1), (0, 2), (1, 2)):
        # Two series that know nothing of each other correlate by about 1 / sqrt(4000).
        assert abs(np.corrcoef(drawn[first], drawn[second])[0, 1]) < 5 / np.sqrt(4000)
    assert abs(np.corrcoef(drawn[0][1:], drawn[0][:-1])[0, 1]) < 5 / np.sqrt(4000)


@given(st.integers(-LIMIT[2], LIMIT[2]))
def test_two_limbs_are_int8_and_add_up(code):
    high, low = split(np.array([code], np.int32))
    assert -127 <= high[0] <= 127
    assert -128 <= low[0] <= 127
    assert 256 * high[0] + low[0] == code


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_nan_and_its_neighbours_are_not(bad):
    x = np.ones((3, 4), np.float32)
    x[1, 2] = bad
    y = reference.matmul(x, np.ones((2, 4), np.int8), 1.0)
    assert np.isnan(y).tolist() == [[False] * 2, [True] * 2, [False] * 2]


def test_the_product_is_bitnets(rng):
    x = rng.standard_normal((5, 70)).astype(np.float32)
    w = rng.integers(-1, 2, (9, 70), dtype=np.int8)
    scale = 127 / np.maximum(np.abs(x).max(axis=1, keepdims=True), 1e-5)
    codes = np.clip(np.rint(x * scale), -128, 127)
    np.testing.assert_allclose(reference.matmul(x, w, 0.3), codes @ w.T * 0.3 / scale, rtol=1e-6)
