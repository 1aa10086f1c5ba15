"""Ternary weights of checkpoints: found exactly, with as few scales as they allow, or refused."""

import numpy as np
import pytest
import torch

from sterna.errors import ConfigError
from sterna.formats.ternary import found_ternary, scaled, unpacked
from tests.node.train.plain import dense


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def codes_of(rng, shape=(12, 384)) -> np.ndarray:
    codes = rng.integers(-1, 2, shape).astype(np.int8)
    codes[:, ::7] = 1  # no block of columns without a weight
    return codes


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (None, "matrix"),
        (384, "row"),
        (192, 192),
        (128, 128),
        (64, 64),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, "bfloat16"])
def test_the_largest_groups_that_share_a_scale_are_found(rng, columns, expected, dtype):
    codes = codes_of(rng)
    count = 1 if columns is None else 384 // columns
    rows = 1 if columns is None else 12
    scales = torch.from_numpy(rng.uniform(0.01, 0.1, (rows, count)))
    # What a file in half precision holds: the products, rounded once.
    scales = scales.to(torch.bfloat16 if dtype == "bfloat16" else getattr(torch, np.dtype(dtype).name))
    scales = scales.float().numpy()
    weights = (codes.reshape(12, count, -1) * scales[..., None]).reshape(12, 384)
    found = found_ternary(weights, "w")
    assert np.array_equal(dense(found).numpy(), weights)
    assert np.array_equal(found.codes(), codes)
    if expected == "matrix":
        assert found.row_scales is None and found.group_scales is None
    elif expected == "row":
        assert found.row_scales is not None
    else:
        assert found.group_size == expected


def test_zeros_have_any_scale(rng):
    codes = codes_of(rng)
    codes[:, 64:128] = 0
    codes[3] = 0
    weights = codes * np.float32(0.5)
    found = found_ternary(weights, "w")
    assert (found.scale, found.row_scales) == (0.5, None)
    assert np.array_equal(dense(found).numpy(), weights)
    assert not found_ternary(np.zeros((3, 70), np.float32), "w").codes().any()


def test_rows_that_are_no_whole_blocks_have_one_scale_each(rng):
    codes = codes_of(rng, (5, 70))
    weights = codes * rng.uniform(0.5, 1, (5, 1)).astype(np.float32)
    assert np.array_equal(dense(found_ternary(weights, "w")).numpy(), weights)


def test_what_is_not_ternary_is_refused_with_its_place(rng):
    weights = codes_of(rng) * np.float32(0.25)
    place = np.argmax(weights[7, 64:128] != 0) + 64
    weights[7, place] = np.nextafter(weights[7, place], np.float32(9))
    with pytest.raises(ConfigError, match=r"w is not ternary: row 7 .* columns 64 to 127") as caught:
        found_ternary(weights, "w")
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what the import brings along
@pytest.mark.parametrize("out", [1, 4, 6, 8, 13])
def test_what_transformers_packs_is_unpacked(rng, out, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    from transformers.integrations.bitnet import pack_weights

    codes = codes_of(rng, (out, 10))
    # The library's loop leaves out a quarter of odd heights; whole ones are what checkpoints have.
    whole = np.concatenate([codes, np.zeros((-out % 4, 10), np.int8)])
    packed = pack_weights(torch.from_numpy(whole.astype(np.float32))).numpy()
    assert np.array_equal(unpacked(packed, out, "w"), codes)


def test_packed_weights_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="stands for no weight"):
        unpacked(np.full((2, 3), 0b11, np.uint8), 8, "w")
    with pytest.raises(ConfigError, match="shape"):
        unpacked(np.zeros((3, 3), np.uint8), 8, "w")


def test_scales_have_one_of_four_shapes(rng):
    codes = codes_of(rng)
    for shape in ((1,), (), (12,), (12, 1), (12, 3), (12, 6)):
        scales = rng.uniform(0.5, 1, shape).astype(np.float32)
        groups = scales.reshape(-1, 1, 1) if scales.ndim < 2 else scales[..., None]
        expected = codes.reshape(12, groups.shape[1], -1) * groups
        assert np.array_equal(dense(scaled(codes, scales, "w")).numpy(), expected.reshape(12, 384))
    for shape in ((2,), (11, 3), (12, 4), (12, 12), (1, 12, 3)):
        with pytest.raises(ConfigError, match="scales of shape"):
            scaled(codes, np.ones(shape, np.float32), "w")
