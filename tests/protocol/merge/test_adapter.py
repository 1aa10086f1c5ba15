"""The adapter: exact bytes, a genesis that changes nothing, factors that mean the same."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna_protocol.errors import LocalProtocolError, MalformedMessage
from sterna_protocol.merge.adapter import (
    HEADER_BYTES,
    STATE_LIMIT,
    Adapter,
    adapter_blob_bytes,
    decode_adapter,
    encode_adapter,
    genesis_adapter,
    lora_factors,
    seeded_a,
)
from sterna_protocol.merge.scheme import a_signs, delta_parts, delta_size
from tests.support.charters import small_charter

SCHEMES = ["fixed", "cycle", "pair"]


def random_adapter(charter, seed=0) -> Adapter:
    shape = (charter.adapter.subspaces, delta_size(charter.adapter))
    rng = np.random.default_rng(seed)
    return Adapter(rng.integers(-STATE_LIMIT, STATE_LIMIT, shape, np.int32, endpoint=True))


@given(st.sampled_from(SCHEMES), st.integers(0, 2**32))
def test_an_adapter_comes_back_from_its_blob(scheme, seed):
    charter = small_charter(scheme=scheme)
    adapter = random_adapter(charter, seed)
    blob = encode_adapter(charter, adapter)
    assert len(blob) == adapter_blob_bytes(charter)
    assert np.array_equal(decode_adapter(charter, blob).state, adapter.state)
    assert encode_adapter(charter, decode_adapter(charter, memoryview(blob))) == blob


def test_the_blob_is_laid_out_as_drawn():
    charter = small_charter()
    state = np.arange(160, dtype=np.int32).reshape(4, 40) - 80
    blob = encode_adapter(charter, Adapter(state))
    assert blob[:HEADER_BYTES] == b"STRA\x01\0\0\0" + charter.swarm_id
    assert blob[HEADER_BYTES:] == b"".join(
        value.to_bytes(4, "little", signed=True) for value in range(-80, 80)
    )


@settings(max_examples=50)
@given(st.binary(min_size=640, max_size=640))
def test_any_state_is_refused_or_canonical(state):
    charter = small_charter()
    blob = encode_adapter(charter, genesis_adapter(charter))[:HEADER_BYTES] + state
    try:
        adapter = decode_adapter(charter, blob)
    except MalformedMessage:
        return
    assert encode_adapter(charter, adapter) == blob


def test_what_is_no_adapter_of_this_swarm_is_refused():
    charter = small_charter()
    blob = encode_adapter(charter, random_adapter(charter))
    for data, message in (
        (blob[:-1], "adapter of 679 bytes, expected 680"),
        (blob + b"\0", "adapter of 681 bytes"),
        (b"X" + blob[1:], "adapter header"),
        (blob[:4] + b"\x02" + blob[5:], "adapter header"),
        (blob[:7] + b"\x01" + blob[8:], "adapter header"),
        (blob[:8] + b"x" * 32 + blob[40:], "adapter header"),
        (blob[:-4] + b"\0\0\0\x80", r"adapter element 159 is -2\*\*31"),
    ):
        with pytest.raises(MalformedMessage, match=message):
            decode_adapter(charter, data)


def test_a_decoded_state_cannot_be_written():
    charter = small_charter()
    state = decode_adapter(charter, bytearray(encode_adapter(charter, genesis_adapter(charter)))).state
    with pytest.raises(ValueError, match="read-only"):
        state[0, 0] = 1


def test_an_adapter_of_another_shape_or_type_is_our_error():
    charter = small_charter()
    for state in (np.zeros((4, 39), np.int32), np.zeros((4, 40), np.int64)):
        with pytest.raises(LocalProtocolError, match="adapter state is"):
            encode_adapter(charter, Adapter(state))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_genesis_adapter_changes_nothing(scheme):
    charter = small_charter(scheme=scheme)
    for a, b in lora_factors(charter, genesis_adapter(charter)).values():
        assert a.all()
        assert not b.any()


def test_a_trained_a_starts_as_the_seed_says():
    charter = small_charter(scheme="pair", linears=(("q", 6, 256), ("down", 4, 768)))
    factors = lora_factors(charter, genesis_adapter(charter))
    assert np.array_equal(factors["layers.1.q"][0], a_signs(charter.adapter, 0, "layers.1.q") / 16)
    assert np.array_equal(factors["layers.0.down"][0], a_signs(charter.adapter, 0, "layers.0.down") / 32)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_factors_are_the_state_in_place(scheme):
    charter = small_charter(scheme=scheme)
    adapter = random_adapter(charter)
    factors = lora_factors(charter, adapter)
    rank, subspaces = charter.adapter.rank, charter.adapter.subspaces
    assert list(factors) == [f"layers.{layer}.{name}" for layer in (0, 1) for name in ("q", "down")]
    for part in delta_parts(charter.adapter):
        for subspace in range(subspaces):
            exact = adapter.state[subspace, part.offset : part.stop].reshape(part.shape) / 2.0**24
            own = slice(subspace * rank, (subspace + 1) * rank)
            a, b = factors[part.name]
            assert a.dtype == b.dtype == np.float32
            got = a[own] if part.matrix == "a" else b[:, own]
            assert np.array_equal(got, exact.astype(np.float32))


def test_subspaces_add_up():
    charter = small_charter(subspaces=3)
    adapter = random_adapter(charter)
    a, b = lora_factors(charter, adapter)["layers.1.down"]
    part = next(part for part in delta_parts(charter.adapter) if part.name == "layers.1.down")
    expected = sum(
        (state[part.offset : part.stop].reshape(part.shape) / 2.0**24)
        @ (a_signs(charter.adapter, c, "layers.1.down") * 2.0**-2)
        for c, state in enumerate(adapter.state)
    )
    # Six products of float32 values; each is rounded once to 2**-24 of itself.
    np.testing.assert_allclose(b.astype(float) @ a.astype(float), expected, rtol=0, atol=6 * 128 * 2.0**-24)


def test_seeded_a_stacks_the_subspaces():
    scheme = small_charter(subspaces=3).adapter
    a = seeded_a(scheme, "layers.0.q", 4)
    assert a.shape == (6, 4)
    assert np.array_equal(a[2:4], a_signs(scheme, 1, "layers.0.q") / 2)
