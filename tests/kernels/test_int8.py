"""Products with an int8 matrix: every variant returns the bits of the reference, near the exact product."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sterna_kernels import Int8Matrix, int8_matmul, int8_matmul_t, reference

# Around 4 bytes, 16 columns, panels of 16, 32 or 64, registers of 32 or 64 bytes.
SIDES = [1, 3, 4, 5, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 79, 127, 129, 193]
ROWS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 33]


def matrix(rng: np.random.Generator, n: int, k: int) -> Int8Matrix:
    codes = rng.integers(-128, 128, (n, k)).astype(np.int8)
    return Int8Matrix(codes, rng.uniform(-0.1, 0.1, n).astype(np.float32))


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def assert_both_products_equal_the_reference(x: np.ndarray, g: np.ndarray, w: Int8Matrix) -> None:
    np.testing.assert_array_equal(int8_matmul(x, w), reference.int8_matmul(x, w.codes, w.scales))
    np.testing.assert_array_equal(int8_matmul_t(g, w), reference.int8_matmul_t(g, w.codes, w.scales))


@pytest.mark.parametrize("n", SIDES)
def test_every_number_of_rows_of_the_matrix(variant, rng, n):
    for k, m in ((5, 1), (64, 5), (130, 8)):
        assert_both_products_equal_the_reference(normal(rng, m, k), normal(rng, m, n), matrix(rng, n, k))


@pytest.mark.parametrize("k", SIDES)
def test_every_length_of_the_rows_of_the_matrix(variant, rng, k):
    for n, m in ((5, 5), (64, 1), (70, 7)):
        assert_both_products_equal_the_reference(normal(rng, m, k), normal(rng, m, n), matrix(rng, n, k))


@pytest.mark.parametrize("m", ROWS)
def test_every_number_of_rows_of_the_input(variant, rng, m):
    assert_both_products_equal_the_reference(normal(rng, m, 150), normal(rng, m, 70), matrix(rng, 70, 150))


@pytest.mark.parametrize("n", [1023, 1024, 1025, 2100])
def test_groups_of_rows_are_rounded_apart_and_added_in_their_order(variant, rng, n):
    spread = np.exp2(rng.integers(-40, 0, (6, n))).astype(np.float32)
    assert_both_products_equal_the_reference(
        normal(rng, 6, 70), normal(rng, 6, n) * spread, matrix(rng, n, 70)
    )


def test_more_rows_than_the_cache_holds_are_done_in_chunks(variant, rng):
    assert_both_products_equal_the_reference(
        normal(rng, 300, 3000), normal(rng, 300, 20), matrix(rng, 20, 3000)
    )


@pytest.mark.parametrize("code", [-128, 127])
@pytest.mark.parametrize("value", [-127.5 / 127, 1.0])
def test_the_longest_row_overflows_nothing(variant, code, value):
    # Codes of 128 / 32512 of the largest have a low limb of -128.
    w = Int8Matrix(np.full((3, 1 << 16), code, np.int8), np.ones(3, np.float32))
    for row in (np.full(1 << 16, value), np.r_[1.0, np.full((1 << 16) - 1, 128 / 32512)]):
        for m in (1, 5):
            x = np.tile(row.astype(np.float32), (m, 1))
            assert_both_products_equal_the_reference(x, np.ones((m, 3), np.float32), w)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_becomes_nan_and_no_other(variant, rng, bad):
    w = matrix(rng, 70, 70)
    for m in (2, 6):
        x = normal(rng, m, 70)
        x[1, 69] = bad
        assert_both_products_equal_the_reference(x, x, w)
        assert np.isnan(int8_matmul(x, w)).all(axis=1).tolist() == [row == 1 for row in range(m)]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_product_equals_the_reference(variant, data):
    m, n, k, offset = (
        data.draw(st.integers(low, top)) for low, top in ((1, 40), (1, 150), (1, 300), (0, 64))
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    codes = rng.integers(-128, 128, n * k + offset).astype(np.int8)[offset:].reshape(n, k)
    w = Int8Matrix(codes, normal(rng, n))
    assert_both_products_equal_the_reference(normal(rng, m, k), normal(rng, m, n), w)


def test_the_reference_is_within_the_rounding_of_its_limbs(rng):
    w = matrix(rng, 1500, 200)
    dense = w.codes.astype(np.float64) * w.scales[:, None]
    x, g = normal(rng, 3, 200), normal(rng, 3, 1500)
    eps = np.finfo(np.float32).eps
    # Each element is off by half a step at most, and a float32 rounding or two.
    for got, rows, weights in (
        (int8_matmul(x, w), x, dense.T),
        (int8_matmul_t(g, w), g * w.scales, dense / w.scales[:, None]),
    ):
        half_step = np.abs(rows).max(1, keepdims=True) / 32512 / 2
        sums = np.abs(weights).sum(0)
        limit = half_step * sums + 8 * eps * (np.abs(rows) @ np.abs(weights))
        assert (np.abs(got - rows.astype(np.float64) @ weights) <= limit).all()


def test_no_rows_give_no_rows(rng):
    w = matrix(rng, 3, 5)
    assert int8_matmul(np.zeros((0, 5), np.float32), w).shape == (0, 3)
    assert int8_matmul_t(np.zeros((0, 3), np.float32), w).shape == (0, 5)


@pytest.mark.parametrize(
    ("codes", "scales", "error", "reason"),
    [
        (np.zeros((2, 3), np.uint8), np.ones(2, np.float32), TypeError, "codes must be int8"),
        (np.zeros((2, 3), np.int8), np.ones(2), TypeError, "scales float32, not int8 and float64"),
        (np.zeros(3, np.int8), np.ones(3, np.float32), ValueError, r"shape \(3,\)"),
        (np.zeros((1, (1 << 16) + 1), np.int8), np.ones(1, np.float32), ValueError, "K <= 65536"),
        (np.zeros((2, 3), np.int8), np.ones(3, np.float32), ValueError, r"need \(2,\)"),
        (np.zeros((3, 2), np.int8).T, np.ones(2, np.float32), ValueError, "contiguous"),
    ],
)
def test_a_matrix_that_does_not_fit_is_refused(codes, scales, error, reason):
    with pytest.raises(error, match=reason):
        Int8Matrix(codes, scales)
