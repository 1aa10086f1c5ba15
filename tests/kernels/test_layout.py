import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sterna_kernels import MAX_SIDE, packed_nbytes
from sterna_kernels.layout import pack, unpack

shapes = st.tuples(st.integers(1, 70), st.integers(1, 140))


def at(row: int, column: int, shape: tuple[int, int]) -> tuple[int, int]:
    """Byte and first bit of a weight, as the layout's drawing says it."""
    blocks_in_a_row = -(-shape[1] // 64)
    block = row // 16 * blocks_in_a_row + column // 64
    q, j, kk = column % 64 // 16, column % 16 // 4, column % 4
    return block * 256 + 64 * q + 4 * (row % 16) + kk, 2 * j


@pytest.mark.parametrize("weight", [-1, 1])
@pytest.mark.parametrize("shape", [(1, 1), (16, 64), (17, 65), (33, 200)])
def test_every_weight_lies_where_the_drawing_says(shape, weight):
    for row in {0, shape[0] // 2, shape[0] - 1}:
        for column in range(shape[1]):
            weights = np.zeros(shape, np.int8)
            weights[row, column] = weight
            expected = np.full(packed_nbytes(shape), 0b01010101, np.uint8)
            byte, bit = at(row, column, shape)
            expected[byte] ^= (0b01 ^ (weight + 1)) << bit
            np.testing.assert_array_equal(pack(weights), expected)


@given(shapes.flatmap(lambda shape: arrays(np.int8, shape, elements=st.integers(-1, 1))))
def test_unpacking_returns_what_was_packed(weights):
    packed = pack(weights)
    assert packed.nbytes == packed_nbytes(weights.shape)
    np.testing.assert_array_equal(unpack(packed, weights.shape), weights)


@pytest.mark.parametrize(
    ("shape", "size"),
    [((1, 1), 256), ((16, 64), 256), ((17, 64), 512), ((16, 65), 512), ((2560, 6912), 2560 * 6912 // 4)],
)
def test_a_matrix_takes_two_bits_a_weight_and_padding(shape, size):
    assert packed_nbytes(shape) == size


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (-1, 5), (MAX_SIDE + 1, 5), (5, MAX_SIDE + 1)])
def test_a_side_out_of_range_is_named(shape):
    with pytest.raises(ValueError, match=rf"\({shape[0]}, {shape[1]}\).*between 1 and 131072"):
        packed_nbytes(shape)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)])
def test_a_shape_has_two_sides(shape):
    with pytest.raises(ValueError, match="a matrix has 2"):
        packed_nbytes(shape)


@pytest.mark.parametrize("weight", [2, -2, 127, -128])
def test_a_weight_that_is_not_ternary_is_named_with_its_place(weight):
    weights = np.zeros((3, 7), np.int8)
    weights[1, 6] = weight
    with pytest.raises(ValueError, match=rf"weight {weight} at \[1, 6\]"):
        pack(weights)
