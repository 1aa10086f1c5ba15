import copy

import numpy as np
import pytest

from sterna_kernels import TernaryMatrix, packed_nbytes


def test_codes_come_back_as_they_went_in(rng):
    codes = rng.integers(-1, 2, (33, 130), dtype=np.int8)
    matrix = TernaryMatrix.from_codes(codes, 0.25)
    np.testing.assert_array_equal(matrix.codes(), codes)
    assert matrix.shape == (33, 130)
    assert matrix.scale == 0.25
    assert matrix.nbytes == packed_nbytes((33, 130)) == matrix.packed.size


def test_packed_bytes_are_kept_and_not_copied():
    packed = np.full(512, 0x55, np.uint8)
    matrix = TernaryMatrix.from_packed(packed, (17, 64), 1.0)
    assert np.shares_memory(matrix.packed, packed)
    packed[0] = 0b01010110
    assert matrix.codes()[0, 0] == 1


def test_a_read_only_map_of_a_file_is_a_matrix(tmp_path, rng):
    codes = rng.integers(-1, 2, (20, 70), dtype=np.int8)
    TernaryMatrix.from_codes(codes, 1.0).packed.tofile(tmp_path / "w")
    mapped = np.memmap(tmp_path / "w", np.uint8, "r")
    np.testing.assert_array_equal(TernaryMatrix.from_packed(mapped, (20, 70), 1.0).codes(), codes)


def test_nobody_writes_through_a_matrix():
    matrix = TernaryMatrix.from_codes(np.zeros((1, 1), np.int8), 1.0)
    with pytest.raises(ValueError, match="read-only"):
        matrix.packed[0] = 0


def test_the_scale_is_what_float32_makes_of_it():
    assert TernaryMatrix.from_codes(np.zeros((1, 1), np.int8), 0.1).scale == float(np.float32(0.1))


def test_a_copy_is_a_matrix_of_its_own(rng):
    matrix = TernaryMatrix.from_codes(rng.integers(-1, 2, (5, 5), dtype=np.int8), 0.5)
    twin = copy.deepcopy(matrix)
    assert not np.shares_memory(twin.packed, matrix.packed)
    np.testing.assert_array_equal(twin.codes(), matrix.codes())


def test_scales_of_rows_are_a_copy_that_nobody_changes():
    scales = np.ones(3, np.float32)
    matrix = TernaryMatrix.from_codes(np.zeros((3, 2), np.int8), 1.0, row_scales=scales)
    scales[0] = 7
    assert matrix.row_scales.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="read-only"):
        matrix.row_scales[0] = 7


def test_read_only_scales_are_kept_so_that_a_mapped_file_stays_mapped():
    scales = np.ones(3, np.float32)
    scales.flags.writeable = False
    matrix = TernaryMatrix.from_codes(np.zeros((3, 2), np.int8), 1.0, row_scales=scales)
    assert matrix.row_scales is scales


@pytest.mark.parametrize(
    ("scales", "error", "named"),
    [
        (np.ones(3), TypeError, "float64"),
        ([1.0] * 3, TypeError, "list"),
        (np.ones(2, np.float32), ValueError, r"\(2,\).*needs \(3,\)"),
        (np.ones((3, 1), np.float32), ValueError, r"\(3, 1\)"),
        (np.array([1, np.inf, 1], np.float32), ValueError, r"row_scales\[1\] is inf"),
    ],
)
def test_scales_of_rows_that_do_not_fit_are_refused(scales, error, named):
    with pytest.raises(error, match=named):
        TernaryMatrix.from_codes(np.zeros((3, 2), np.int8), 1.0, row_scales=scales)


def test_scales_of_groups_are_a_copy_that_nobody_changes():
    scales = np.ones((2, 3), np.float32).T
    matrix = TernaryMatrix.from_codes(np.zeros((3, 70), np.int8), 1.0, group_scales=scales, group_size=64)
    scales[0] = 7
    assert matrix.group_scales.tolist() == [[1, 1]] * 3
    assert matrix.group_scales.flags.c_contiguous
    assert matrix.group_size == 64
    with pytest.raises(ValueError, match="read-only"):
        matrix.group_scales[0] = 7


@pytest.mark.parametrize(
    ("scales", "size", "error", "named"),
    [
        (np.ones((3, 2)), 64, TypeError, "group_scales.*float64"),
        ([[1.0, 1.0]] * 3, 64, TypeError, "list"),
        (np.ones((3, 1), np.float32), 64, ValueError, r"\(3, 1\).*needs \(3, 2\)"),
        (np.ones((3, 2), np.float32), 128, ValueError, r"\(3, 2\).*needs \(3, 1\)"),
        (np.ones(6, np.float32), 64, ValueError, r"\(6,\)"),
        (np.array([[1, 1], [1, np.nan], [1, 1]], np.float32), 64, ValueError, r"group_scales\[1, 1\] is nan"),
        (np.ones((3, 2), np.float32), 63, ValueError, "group_size=63: a multiple of 64"),
        (np.ones((3, 2), np.float32), 0, ValueError, "group_size=0"),
        (np.ones((3, 2), np.float32), -64, ValueError, "group_size=-64"),
        (np.ones((3, 2), np.float32), 64.0, ValueError, "group_size=64.0"),
        (np.ones((3, 1), np.float32), 1 << 18, ValueError, "group_size=262144"),
        (np.ones((3, 2), np.float32), None, ValueError, "go together"),
        (None, 64, ValueError, "go together"),
    ],
)
def test_scales_of_groups_that_do_not_fit_are_refused(scales, size, error, named):
    with pytest.raises(error, match=named):
        TernaryMatrix.from_codes(np.zeros((3, 70), np.int8), 1.0, group_scales=scales, group_size=size)


def test_scales_of_rows_beside_those_of_groups_are_refused():
    with pytest.raises(ValueError, match="row_scales beside group_scales"):
        TernaryMatrix.from_codes(
            np.zeros((3, 70), np.int8),
            1.0,
            row_scales=np.ones(3, np.float32),
            group_scales=np.ones((3, 2), np.float32),
            group_size=64,
        )


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf"), 1e39])
def test_a_scale_that_is_not_finite_is_named(scale):
    with pytest.raises(ValueError, match=f"scale {scale}".replace("+", r"\+")):
        TernaryMatrix.from_codes(np.zeros((1, 1), np.int8), scale)


@pytest.mark.parametrize(
    ("codes", "named"),
    [(np.zeros((2, 2)), "float64"), (np.zeros((2, 2), np.uint8), "uint8"), ([[0]], "list")],
)
def test_codes_of_another_type_are_named(codes, named):
    with pytest.raises(TypeError, match=named):
        TernaryMatrix.from_codes(codes, 1.0)


@pytest.mark.parametrize(
    ("packed", "error", "named"),
    [
        (np.zeros(256, np.int8), TypeError, "int8"),
        (bytes(256), TypeError, "bytes"),
        (np.zeros((4, 64), np.uint8), ValueError, r"\(4, 64\)"),
        (np.zeros(512, np.uint8)[::2], ValueError, "contiguous"),
        (np.zeros(255, np.uint8), ValueError, "255 packed bytes.*needs 256"),
        (np.zeros(512, np.uint8), ValueError, "512 packed bytes.*needs 256"),
    ],
)
def test_packed_bytes_that_do_not_fit_are_refused(packed, error, named):
    with pytest.raises(error, match=named):
        TernaryMatrix.from_packed(packed, (16, 64), 1.0)
