import numpy as np
import pytest
import torch

from sterna_kernels import TernaryMatrix, _native, matmul, matmul_t, reference

WEIGHTS = TernaryMatrix.from_codes(np.ones((3, 5), np.int8), 1.0)


@pytest.mark.parametrize(
    ("x", "error", "named"),
    [
        (np.zeros((2, 5)), TypeError, "float64"),
        (np.zeros((2, 5), np.int8), TypeError, "int8"),
        ([[0.0] * 5], TypeError, "list"),
        (np.zeros((2, 4), np.float32), ValueError, r"\(2, 4\).*needs \(rows, 5\)"),
        (np.zeros(5, np.float32), ValueError, r"\(5,\)"),
        (np.zeros((1, 2, 5), np.float32), ValueError, r"\(1, 2, 5\)"),
        (np.zeros((5, 2), np.float32).T, ValueError, "C-contiguous"),
        (np.zeros((4, 5), np.float32)[::2], ValueError, "C-contiguous"),
        (np.frombuffer(bytes(41), np.float32, 10, offset=1).reshape(2, 5), ValueError, "aligned"),
    ],
)
def test_rows_that_do_not_fit_are_refused(x, error, named):
    with pytest.raises(error, match=named):
        matmul(x, WEIGHTS)


def test_results_go_where_they_are_wanted(rng):
    x, g = (rng.standard_normal((40, side), np.float32) for side in (5, 3))
    y, dx = np.full((40, 3), np.nan, np.float32), np.full((40, 5), np.nan, np.float32)
    assert matmul(x, WEIGHTS, out=y) is y
    assert matmul_t(g, WEIGHTS, out=dx) is dx
    np.testing.assert_array_equal(y, matmul(x, WEIGHTS))
    np.testing.assert_array_equal(dx, matmul_t(g, WEIGHTS))


@pytest.mark.parametrize(
    ("out", "error", "named"),
    [
        (np.zeros((2, 3)), TypeError, "out must be a float32 array"),
        (np.zeros((2, 4), np.float32), ValueError, r"out has shape \(2, 4\)"),
        (np.zeros((3, 3), np.float32), ValueError, "out has 3 rows, the result has 2"),
        (np.zeros((2, 6), np.float32)[:, :3], ValueError, "C-contiguous"),
        (np.frombuffer(bytes(24), np.float32).reshape(2, 3), ValueError, "read-only"),
    ],
)
def test_a_place_that_does_not_fit_is_refused(out, error, named):
    with pytest.raises(error, match=named):
        matmul(np.zeros((2, 5), np.float32), WEIGHTS, out=out)


def test_a_result_does_not_go_over_what_is_multiplied():
    square = TernaryMatrix.from_codes(np.ones((5, 5), np.int8), 1.0)
    x = np.zeros((2, 5), np.float32)
    with pytest.raises(ValueError, match="shares memory"):
        matmul_t(x, square, out=x)


def test_the_backward_product_takes_rows_of_n():
    with pytest.raises(ValueError, match=r"g has shape \(2, 5\).*needs \(rows, 3\)"):
        matmul_t(np.zeros((2, 5), np.float32), WEIGHTS)


@pytest.mark.parametrize("limbs", [0, 3, -1])
def test_a_number_of_limbs_that_does_not_exist_is_named(limbs):
    with pytest.raises(ValueError, match=f"limbs={limbs}"):
        matmul_t(np.zeros((2, 3), np.float32), WEIGHTS, limbs=limbs)


@pytest.mark.parametrize("side", [0, -1, 2**17 + 1])
def test_the_compiled_module_refuses_sides_on_its_own(side):
    with pytest.raises(ValueError, match=f"side {side} "):
        _native.forward(1, side, 1, 1.0, 0, 0, 1, 1, 1)


def test_the_compiled_module_refuses_the_address_zero():
    with pytest.raises(ValueError, match="address 0"):
        _native.forward(0, 1, 1, 1.0, 0, 0, 0, 1, 0)


@pytest.mark.parametrize("group", [-64, 1, 63, 100])
def test_the_compiled_module_refuses_groups_that_cut_a_block(group):
    with pytest.raises(ValueError, match=f"groups of {group} columns: a multiple of 64"):
        _native.forward(1, 1, 1, 1.0, 1, group, 1, 1, 1)


@pytest.mark.parametrize(("first", "rows"), [(-1, 1), (0, 4), (3, 1), (0, -1)])
def test_the_compiled_module_unpacks_no_rows_beyond_the_matrix(first, rows):
    with pytest.raises(ValueError, match="of 3"):
        _native.unpack(WEIGHTS.packed.ctypes.data, 3, 5, first, rows, 1)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_the_work_and_change_no_bit(rng, threads):
    # 64 x 700 x 600 is above the work that stays on one thread.
    codes = rng.integers(-1, 2, (700, 600), dtype=np.int8)
    w = TernaryMatrix.from_codes(codes, 0.1)
    x, g = (rng.standard_normal((64, side)).astype(np.float32) for side in (600, 700))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        y, dx = matmul(x, w), matmul_t(g, w, limbs=2)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(y, reference.matmul(x, codes, w.scale))
    np.testing.assert_array_equal(dx, reference.matmul_t(g, codes, w.scale, limbs=2))
