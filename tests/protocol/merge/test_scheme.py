"""What a round trains, and the A matrices that everybody derives."""

import hashlib
import math

import numpy as np
import pytest

from sterna_protocol.errors import LocalProtocolError
from sterna_protocol.merge.scheme import (
    a_exponent,
    a_signs,
    delta_parts,
    delta_size,
    subspace_of,
)
from tests.support.charters import small_charter


def test_parts_stand_layer_by_layer_in_the_charters_order():
    parts = delta_parts(small_charter().adapter)
    assert [(part.name, part.matrix, part.shape, part.offset) for part in parts] == [
        ("layers.0.q", "b", (6, 2), 0),
        ("layers.0.down", "b", (4, 2), 12),
        ("layers.1.q", "b", (6, 2), 20),
        ("layers.1.down", "b", (4, 2), 32),
    ]


def test_a_pair_sends_a_before_b():
    parts = delta_parts(small_charter(scheme="pair", layers=1).adapter)
    assert [(part.name, part.matrix, part.shape, part.offset) for part in parts] == [
        ("layers.0.q", "a", (2, 4), 0),
        ("layers.0.q", "b", (6, 2), 8),
        ("layers.0.down", "a", (2, 10), 20),
        ("layers.0.down", "b", (4, 2), 40),
    ]


@pytest.mark.parametrize("scheme", ["fixed", "cycle", "pair"])
def test_parts_fill_a_delta_without_gaps(scheme):
    adapter = small_charter(scheme=scheme, rank=3, layers=5).adapter
    parts = delta_parts(adapter)
    assert [part.offset for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert parts[-1].stop == delta_size(adapter)


def test_rounds_cycle_through_the_subspaces():
    adapter = small_charter(subspaces=3).adapter
    assert [subspace_of(adapter, round_) for round_ in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert subspace_of(small_charter(scheme="pair").adapter, 7) == 0


def test_signs_come_from_the_seed_bit_by_bit():
    adapter = small_charter(rank=3).adapter
    stream = hashlib.shake_256(b"sterna/a/1\0" + b"s" * 32 + b"\0\0\0\x02" + b"layers.1.down").digest(4)
    expected = [-1 if stream[i // 8] >> (i % 8) & 1 else 1 for i in range(30)]
    signs = a_signs(adapter, 2, "layers.1.down")
    assert signs.dtype == np.int8
    assert signs.shape == (3, 10)
    assert signs.reshape(-1).tolist() == expected


def test_every_a_is_another():
    adapter = small_charter(rank=64).adapter
    seen = {
        a_signs(adapter, subspace, name).tobytes()
        for subspace in range(4)
        for name in ("layers.0.q", "layers.1.q")
    }
    assert len(seen) == 8


@pytest.mark.parametrize("in_features", [1, 2, 3, 4, 7, 8, 31, 32, 127, 128, 256, 768, 2560, 6912, 2**24])
def test_the_scale_of_a_is_the_power_of_two_nearest_to_the_root(in_features):
    assert 2.0 ** abs(a_exponent(in_features) + math.log2(in_features) / 2) <= math.sqrt(2) + 1e-12


def test_the_scales_of_the_measured_base():
    assert (a_exponent(256), a_exponent(768)) == (-4, -5)


@pytest.mark.parametrize(
    "name", ["q", "layers.2.q", "layers.00.q", "layers.-1.q", "layers.0.up", "x.0.q", "layers.0.1.q", ""]
)
def test_a_linear_that_the_charter_lacks_is_our_error(name):
    with pytest.raises(LocalProtocolError, match="the scheme has no linear"):
        a_signs(small_charter().adapter, 0, name)


@pytest.mark.parametrize("subspace", [-1, 4])
def test_a_subspace_that_the_charter_lacks_is_our_error(subspace):
    with pytest.raises(LocalProtocolError, match="the scheme has 4"):
        a_signs(small_charter().adapter, subspace, "layers.0.q")
