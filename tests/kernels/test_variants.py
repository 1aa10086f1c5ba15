"""Every variant returns the bits of the reference, whatever the sizes, places and values."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sterna_kernels import MAX_SIDE, TernaryMatrix, matmul, matmul_t, reference, use_variant, variants
from sterna_kernels import variant as variant_in_use

# Around the steps of all variants: 4 bytes, blocks of 16 rows, panels of 16, 32 or 64 columns, chunks of 64.
SIDES = [1, 3, 4, 5, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 79, 127, 128, 129, 193]

# Around the rows done at once (1, 2, 6, 8) and tiles of 16 limb rows.
ROWS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 16, 17, 31, 32, 33, 47, 48, 49, 65]

MISALIGNED = [0, 1, 7, 33]


def ternary(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    return rng.integers(-1, 2, (n, k), dtype=np.int8)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def assert_all_products_equal_the_reference(x: np.ndarray, g: np.ndarray, w: TernaryMatrix) -> None:
    codes = w.codes()
    scales = (w.scale, w.row_scales, w.group_scales, w.group_size)
    rng = np.random.default_rng(x.size)
    expected = reference.matmul(x, codes, *scales)
    np.testing.assert_array_equal(matmul(x, w), expected)
    thin = normal(rng, x.shape[0], 3), normal(rng, 3, w.shape[0])
    np.testing.assert_array_equal(matmul(x, w, thin=thin), reference.plus_thin(expected, *thin))
    for limbs in (1, 2):
        expected = reference.matmul_t(g, codes, *scales, limbs=limbs)
        np.testing.assert_array_equal(matmul_t(g, w, limbs=limbs), expected)
        thin = normal(rng, g.shape[0], 3), normal(rng, 3, w.shape[1])
        added = matmul_t(g, w, limbs=limbs, thin=thin)
        np.testing.assert_array_equal(added, reference.plus_thin(expected, *thin))


@pytest.mark.parametrize("n", SIDES)
def test_every_number_of_rows_of_the_matrix(variant, rng, n):
    for k in (5, 64, 130):
        w = TernaryMatrix.from_codes(ternary(rng, n, k), 0.37)
        assert_all_products_equal_the_reference(normal(rng, 3, k), normal(rng, 3, n), w)


@pytest.mark.parametrize("k", [*SIDES, 255, 256, 257, 700])
def test_every_number_of_columns_of_the_matrix(variant, rng, k):
    for n in (5, 16, 70):
        w = TernaryMatrix.from_codes(ternary(rng, n, k), -1.25)
        assert_all_products_equal_the_reference(normal(rng, 3, k), normal(rng, 3, n), w)
        assert_all_products_equal_the_reference(normal(rng, 1, k), normal(rng, 1, n), w)


@pytest.mark.parametrize("m", ROWS)
def test_every_number_of_rows_of_the_input(variant, rng, m):
    w = TernaryMatrix.from_codes(ternary(rng, 40, 150), 3e-3)
    assert_all_products_equal_the_reference(normal(rng, m, 150), normal(rng, m, 40), w)


@pytest.mark.parametrize("m", [1, 8, 9, 40])
@pytest.mark.parametrize("n", [1, 16, 31, 64, 100])
def test_each_row_of_the_matrix_may_have_its_scale(variant, rng, n, m):
    w = TernaryMatrix.from_codes(ternary(rng, n, 90), 0.5, row_scales=normal(rng, n))
    assert_all_products_equal_the_reference(normal(rng, m, 90), normal(rng, m, n), w)


def grouped(rng: np.random.Generator, n: int, k: int, size: int, scale: float = 0.5) -> TernaryMatrix:
    scales = normal(rng, n, -(-k // size))
    return TernaryMatrix.from_codes(ternary(rng, n, k), scale, group_scales=scales, group_size=size)


@pytest.mark.parametrize("size", [64, 128, 192])
@pytest.mark.parametrize("n", [1, 16, 31, 64, 100, 200])
def test_each_group_of_columns_may_have_its_scales(variant, rng, n, size):
    for k in (5, 64, 128, 130, 193, 384, 700):
        w = grouped(rng, n, k, size)
        for m in (1, 3, 9, 33):
            assert_all_products_equal_the_reference(normal(rng, m, k), normal(rng, m, n), w)


@pytest.mark.parametrize("offset", MISALIGNED)
@pytest.mark.parametrize("m", [1, 9, 40])
def test_arrays_of_a_matrix_with_groups_may_start_anywhere(variant, rng, m, offset):
    n, k = 35, 341
    whole = grouped(rng, n, k, 128)
    moved = np.zeros(whole.packed.size + offset, np.uint8)
    moved[offset:] = whole.packed
    w = TernaryMatrix.from_packed(
        moved[offset:], (n, k), 0.5, group_scales=whole.group_scales, group_size=whole.group_size
    )
    x = normal(rng, m * k + offset)[offset:].reshape(m, k)
    g = normal(rng, m * n + offset)[offset:].reshape(m, n)
    assert_all_products_equal_the_reference(x, g, w)


def test_more_rows_than_the_cache_holds_with_groups_are_done_in_chunks(variant, rng):
    assert_all_products_equal_the_reference(
        normal(rng, 560, 2000), normal(rng, 560, 70), grouped(rng, 70, 2000, 192)
    )
    # Results that go past the caches, a part of each row at a time.
    assert_all_products_equal_the_reference(
        normal(rng, 560, 1024), normal(rng, 560, 70), grouped(rng, 70, 1024, 512)
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_nan_in_all_groups(variant, rng, bad):
    w = grouped(rng, 100, 200, 64)
    for m in (1, 20):
        x, g = normal(rng, m, 200), normal(rng, m, 100)
        x[0, 150] = g[0, 50] = bad
        assert_all_products_equal_the_reference(x, g, w)
        assert np.isnan(matmul(x, w)[0]).all()


def test_one_group_is_what_scales_of_rows_are(variant, rng):
    codes, scales = ternary(rng, 40, 150), normal(rng, 40)
    rows = TernaryMatrix.from_codes(codes, 0.5, row_scales=scales)
    group = TernaryMatrix.from_codes(codes, 0.5, group_scales=scales[:, None], group_size=192)
    for m in (1, 20):
        x, g = normal(rng, m, 150), normal(rng, m, 40)
        np.testing.assert_array_equal(matmul(x, group), matmul(x, rows))
        np.testing.assert_array_equal(matmul_t(g, group), matmul_t(g, rows))


@pytest.mark.parametrize("offset", MISALIGNED)
@pytest.mark.parametrize("m", [1, 9])
def test_arrays_may_start_anywhere(variant, rng, m, offset):
    n, k = 35, 141
    packed = TernaryMatrix.from_codes(ternary(rng, n, k), 1.0).packed
    moved = np.zeros(packed.size + offset, np.uint8)
    moved[offset:] = packed
    w = TernaryMatrix.from_packed(moved[offset:], (n, k), 0.5)
    x = normal(rng, m * k + offset)[offset:].reshape(m, k)
    g = normal(rng, m * n + offset)[offset:].reshape(m, n)
    assert_all_products_equal_the_reference(x, g, w)


@pytest.mark.parametrize("weight", [-1, 0, 1])
@pytest.mark.parametrize("value", [-127.0, -1.0, 0.0, 1e-30, 127.0, 3e38])
def test_extreme_weights_and_values_saturate_nothing(variant, weight, value):
    # 2,600 columns are many int16 sums of the longest run.
    w = TernaryMatrix.from_codes(np.full((20, 2600), weight, np.int8), 1.0)
    x = np.full((7, 2600), value, np.float32)
    assert_all_products_equal_the_reference(x, np.full((7, 20), value, np.float32), w)
    assert_all_products_equal_the_reference(x[:1], np.full((1, 20), value, np.float32), w)


def test_low_limbs_of_minus_128_saturate_nothing(variant):
    # A gradient of 127.5 / 32512 of the largest has the limbs 1 and -128.
    n = 1000
    g = np.full((6, n), 128 / 32512, np.float32)
    g[:, 0] = 1
    w = TernaryMatrix.from_codes(np.ones((n, 33), np.int8), 1.0)
    high, low = reference.split(reference.quantise(g, floor=reference.GRADIENT_FLOOR, limbs=2)[0])
    assert low[0, 1] == -128
    assert high[0, 1] == 1
    assert_all_products_equal_the_reference(np.ones((6, 33), np.float32), g, w)


def test_the_longest_side_is_exact(variant):
    w = TernaryMatrix.from_codes(np.ones((1, MAX_SIDE), np.int8), 1.0)
    for m in (1, 2):
        y = matmul(np.ones((m, MAX_SIDE), np.float32), w)
        assert y.tolist() == [[np.float32(127 * MAX_SIDE) * (np.float32(1) / np.float32(127))]] * m
    tall = TernaryMatrix.from_codes(np.ones((MAX_SIDE, 1), np.int8), 1.0)
    g = np.full((1, MAX_SIDE), -1, np.float32)
    np.testing.assert_array_equal(
        matmul_t(g, tall, limbs=2), reference.matmul_t(g, tall.codes(), 1.0, limbs=2)
    )


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 15, 16, 63, 64, 99])
def test_a_row_that_is_not_finite_becomes_nan_and_no_other(variant, rng, bad, place):
    w = TernaryMatrix.from_codes(ternary(rng, 100, 100), 1.0)
    x = normal(rng, 3, 100)
    x[1, place] = bad
    assert_all_products_equal_the_reference(x, x, w)
    assert np.isnan(matmul(x[1:2], w)).all()


def test_zeros_negative_zeros_and_subnormals(variant, rng):
    w = TernaryMatrix.from_codes(ternary(rng, 20, 20), 1.0)
    x = np.array([0.0, -0.0, 1e-45, -1e-45, 1e-38, 1e-5], np.float32).repeat(20).reshape(6, 20)
    assert_all_products_equal_the_reference(x, x, w)


def test_halves_round_as_in_the_reference(variant):
    w = TernaryMatrix.from_codes(np.eye(200, dtype=np.int8), 1.0)
    x = (np.arange(200, dtype=np.float32) - 100) / 2
    x[0] = 127
    assert_all_products_equal_the_reference(x.reshape(1, -1), x.reshape(1, -1), w)


def test_damaged_bytes_with_the_unused_code_are_weights_of_two(variant, rng):
    packed = rng.integers(0, 256, 2 * 11 * 256, dtype=np.uint8)
    packed[::3] = 0xFF
    w = TernaryMatrix.from_packed(packed, (32, 700), 1.0)
    assert w.codes().max() == 2
    x = np.full((7, 700), 127, np.float32)
    assert_all_products_equal_the_reference(x, x[:, :32].copy(), w)
    assert_all_products_equal_the_reference(-x[:1], x[:1, :32].copy(), w)


def test_more_rows_than_the_cache_holds_are_done_in_chunks(variant, rng):
    w = TernaryMatrix.from_codes(ternary(rng, 70, 2000), 1.0)
    assert_all_products_equal_the_reference(normal(rng, 560, 2000), normal(rng, 560, 70), w)
    tall = TernaryMatrix.from_codes(ternary(rng, 2000, 70), 1.0)
    assert_all_products_equal_the_reference(normal(rng, 560, 70), normal(rng, 560, 2000), tall)


def test_no_rows_give_no_rows(variant):
    w = TernaryMatrix.from_codes(np.zeros((3, 5), np.int8), 1.0)
    assert matmul(np.zeros((0, 5), np.float32), w).shape == (0, 3)
    assert matmul_t(np.zeros((0, 3), np.float32), w).shape == (0, 5)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_product_equals_the_reference(variant, data):
    m, n, k = (
        data.draw(st.integers(1, top), label=name) for name, top in (("m", 40), ("n", 150), ("k", 300))
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), label="seed"))
    spread = np.exp2(rng.integers(-30, 30, (m, 1))).astype(np.float32)
    scale = data.draw(st.floats(-100, 100, width=32), label="scale")
    size = data.draw(st.sampled_from([None, 64, 128, 192, 320]), label="group")
    w = (
        TernaryMatrix.from_codes(ternary(rng, n, k), scale)
        if size is None
        else grouped(rng, n, k, size, scale)
    )
    assert_all_products_equal_the_reference(normal(rng, m, k) * spread, normal(rng, m, n) * spread, w)


def test_the_fastest_variant_is_used_and_scalar_is_the_last():
    assert variant_in_use() == variants()[0]
    assert variants()[-1] == "scalar"
    order = ["amx", "avx512vnni", "avxvnni", "avx2", "neon-i8mm", "neon-dotprod", "scalar"]
    assert variants() == [name for name in order if name in variants()]


@pytest.mark.parametrize("name", ["", "sse9", "AVX2", "neon"])
def test_an_unknown_variant_is_refused_and_nothing_changes(name):
    before = variant_in_use()
    with pytest.raises(ValueError, match=f"variant {name!r} does not run here.*scalar"):
        use_variant(name)
    assert variant_in_use() == before


def test_the_variant_asked_for_is_used(variant):
    assert variant_in_use() == variant
