"""The sorting network sorts."""

import itertools

import numpy as np
import pytest

from sterna_protocol.merge.network import sort_columns


# The 0-1 principle (Knuth, 5.3.4 Z): a network that sorts every column of zeros and ones sorts everything.
@pytest.mark.parametrize("rows", range(1, 13))
def test_sorts_every_column_of_zeros_and_ones(rows):
    values = np.array(list(itertools.product((0, 1), repeat=rows)), np.int32).T.copy()
    expected = np.sort(values, axis=0)
    sort_columns(values)
    assert np.array_equal(values, expected)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("rows", [13, 16, 31, 32, 33, 63, 64])
def test_sorts_random_columns(rows, dtype):
    limits = np.iinfo(dtype)
    values = np.random.default_rng(rows).integers(limits.min, limits.max, (rows, 500), dtype, endpoint=True)
    expected = np.sort(values, axis=0)
    sort_columns(values)
    assert np.array_equal(values, expected)
