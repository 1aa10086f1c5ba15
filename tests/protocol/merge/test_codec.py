"""The delta on the wire: exact sizes, one spelling, every wrong byte refused, little lost in rounding."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna_protocol.errors import LocalProtocolError, MalformedMessage
from sterna_protocol.merge.codec import (
    HEADER_BYTES,
    MAX_EXPONENT,
    MIN_EXPONENT,
    Delta,
    block_elements,
    decode_delta,
    delta_blob_bytes,
    dequantise,
    encode_delta,
    quantise,
)
from sterna_protocol.merge.packing import PACKINGS
from tests.protocol.merge.deltas import LIMITS, random_delta
from tests.support.charters import small_charter

CODECS = ["int8", "int4", "ternary", "top2"]
AUTHOR = b"a" * 32


def charter_of(codec, size=40):
    """A charter whose deltas have ``size`` elements."""
    return small_charter(codec=codec, layers=1, rank=1, linears=(("q", size, 4),))


def decode(charter, data, *, author=AUTHOR, round_=7):
    return decode_delta(charter, author=author, round_=round_, data=data)


def encode(charter, delta):
    return encode_delta(charter, author=AUTHOR, round_=7, delta=delta)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(CODECS), st.integers(1, 3000), st.integers(0, 2**32))
def test_a_delta_comes_back_from_its_blob(codec, size, seed):
    charter = charter_of(codec, size)
    delta = random_delta(charter, np.random.default_rng(seed))
    blob = encode(charter, delta)
    assert len(blob) == delta_blob_bytes(charter)
    again = decode(charter, blob)
    assert again.codec == codec
    assert np.array_equal(again.codes, delta.codes)
    assert np.array_equal(again.exponents, delta.exponents)
    assert encode(charter, again) == blob


@pytest.mark.parametrize(
    ("codec", "size", "expected"),
    [
        ("int8", 256, 1 + 256),
        ("int8", 257, 2 + 257),
        ("int4", 256, 1 + 128),
        ("int4", 257, 2 + 129),
        ("ternary", 1024, 1 + 205),
        ("ternary", 1025, 2 + 205),
        ("ternary", 1026, 2 + 206),
        ("top2", 1024, 1 + 48),
        ("top2", 1025, 2 + 50),
        ("top2", 1088, 2 + 51),
        ("top2", 1089, 2 + 53),
    ],
)
def test_sizes_follow_from_the_charter_to_the_byte(codec, size, expected):
    assert delta_blob_bytes(charter_of(codec, size)) == HEADER_BYTES + expected


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(CODECS), st.integers(1, 30), st.data())
def test_any_bytes_behind_the_header_are_refused_or_canonical(codec, size, data):
    charter = charter_of(codec, size)
    good = encode(charter, random_delta(charter, np.random.default_rng(0)))
    length = len(good) - HEADER_BYTES
    blob = good[:HEADER_BYTES] + data.draw(st.binary(min_size=length, max_size=length))
    try:
        delta = decode(charter, blob)
    except MalformedMessage:
        return
    assert encode(charter, delta) == blob


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(CODECS), st.binary(max_size=150))
def test_any_other_bytes_are_refused(codec, data):
    with pytest.raises(MalformedMessage):
        decode(charter_of(codec), data)


# Header: magic 0-3, version 4, codec 5, zero 6-7, swarm 8-39, round 40-43, author 44-75.
@pytest.mark.parametrize("place", [0, 3, 4, 5, 6, 7, 8, 39, 40, 43, 44, 75])
def test_another_header_is_refused(place):
    charter = charter_of("int8")
    blob = bytearray(encode(charter, random_delta(charter, np.random.default_rng(0))))
    blob[place] ^= 1
    with pytest.raises(MalformedMessage, match="delta header"):
        decode(charter, bytes(blob))


def test_a_delta_is_bound_to_its_author_round_and_swarm():
    charter = charter_of("int8")
    blob = encode(charter, random_delta(charter, np.random.default_rng(0)))
    decode(charter, blob)
    for wrong in ({"author": b"b" * 32}, {"round_": 8}):
        with pytest.raises(MalformedMessage, match="delta header"):
            decode(charter, blob, **wrong)
    with pytest.raises(MalformedMessage, match="delta header"):
        decode(charter_of("int8").model_copy(update={"nonce": b"n" * 16}), blob)


@pytest.mark.parametrize(
    ("codec", "offset", "byte", "message"),
    [
        ("int8", 0, 1, r"exponents 1\.\.1"),
        ("int8", 0, 0xE7, r"exponents -25"),
        ("int8", 0, 0x80, r"exponents -128"),
        ("int8", 1, 0x80, "int8 code -128 at 0"),
        ("int8", 7, 0x80, "int8 code -128 at 6"),
        ("int4", 1, 0x08, "int4 code -8 at 0"),
        ("int4", 1, 0x80, "int4 code -8 at 1"),
        ("int4", 4, 0x10, "int4 padding is not zero"),
        ("ternary", 1, 243, "ternary byte 243 at 0"),
        ("ternary", 2, 255, "ternary byte 255 at 1"),
        ("ternary", 2, 0, "ternary padding is not zero"),
        ("ternary", 2, 121 + 81, "ternary padding is not zero"),
        ("top2", 2, 0x10, "top2 padding is not zero"),
        ("top2", 1, 7 << 2, "top2 index 7 of 7"),
    ],
)
def test_a_byte_that_no_correct_peer_sends_is_refused(codec, offset, byte, message):
    charter = charter_of(codec, 7)
    blob = bytearray(encode(charter, quantise(np.zeros(7, np.float32), codec)))
    blob[HEADER_BYTES + offset] = byte
    with pytest.raises(MalformedMessage, match=message):
        decode(charter, bytes(blob))


@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize("codec", CODECS)
def test_a_size_that_does_not_follow_from_the_charter_is_refused(codec, change):
    charter = charter_of(codec)
    blob = encode(charter, random_delta(charter, np.random.default_rng(0)))
    with pytest.raises(MalformedMessage, match=f"delta of {len(blob) + change} bytes"):
        decode(charter, (blob + b"\0")[: len(blob) + change])


# Packing against the definition, digit by digit.
def test_five_trits_a_byte_the_first_counts_least():
    for digits in itertools.product((-1, 0, 1), repeat=5):
        packed = PACKINGS["ternary"].pack(np.array(digits, np.int8))
        assert packed.tolist() == [sum((digit + 1) * 3**place for place, digit in enumerate(digits))]
        assert PACKINGS["ternary"].unpack(packed, 5).tolist() == list(digits)


def test_two_codes_a_byte_the_first_in_the_low_half():
    for low, high in itertools.product(range(-7, 8), repeat=2):
        packed = PACKINGS["int4"].pack(np.array([low, high], np.int8))
        assert packed.tolist() == [(low & 15) | (high & 15) << 4]
        assert PACKINGS["int4"].unpack(packed, 2).tolist() == [low, high]


def test_twelve_bits_for_each_kept_code():
    codes = np.zeros(1100, np.int8)
    places = [*range(31), 1023, 1024, 1030, 1099]
    codes[places] = [-3, -2, 2, 3] * 8 + [2, -2, 3]
    packed = PACKINGS["top2"].pack(codes)
    number = int.from_bytes(packed.tobytes(), "little")
    words = [(number >> 12 * i) & 0xFFF for i in range(35)]
    assert [word >> 2 for word in words] == [*range(31), 1023, 0, 6, 75]
    assert [word & 3 for word in words] == [0, 1, 2, 3] * 8 + [2, 1, 3]
    assert number >> 12 * 35 == 0
    assert np.array_equal(PACKINGS["top2"].unpack(packed, 1100), codes)


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ([5, 5], "do not ascend after 0"),
        ([6, 5], "do not ascend after 0"),
        ([5, 40], "top2 index 40 of 40"),
    ],
)
def test_top2_indices_ascend_inside_their_block(places, message):
    first, second = (place << 2 for place in places)
    word = (first | second << 12).to_bytes(3, "little")
    with pytest.raises(MalformedMessage, match=message):
        PACKINGS["top2"].unpack(np.frombuffer(word, np.uint8), 40)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ({0: 2}, "1 codes that are not 0, expected 33"),
        (dict.fromkeys(range(33), 2), "33 codes that are not 0, expected 33"),
        (dict.fromkeys((*range(32), 1024), 1), "a code that is not 0, 2, 3, -2 or -3"),
    ],
)
def test_top2_keeps_a_fixed_number_of_each_block(codes, message):
    dense = np.zeros(1030, np.int8)
    dense[list(codes)] = list(codes.values())
    with pytest.raises(LocalProtocolError, match=message):
        encode(charter_of("top2", 1030), Delta(dense, np.zeros(2, np.int8), "top2"))


DENSE = ["int8", "int4", "ternary"]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(DENSE), st.integers(1, 3000), st.integers(-22, -1), st.integers(0, 2**32))
def test_quantising_loses_least(codec, size, scale, seed):
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal(size) * rng.choice([1, 30], size) * 2.0**scale / 64).astype(np.float32)
    delta = quantise(values, codec)
    assert np.abs(delta.codes).max() <= LIMITS[codec]
    assert delta.exponents.min() >= MIN_EXPONENT
    assert delta.exponents.max() <= MAX_EXPONENT
    block = block_elements(codec)
    for start in range(0, size, block):
        part = values[start : start + block].astype(np.float64)
        errors = {}
        for exponent in range(MIN_EXPONENT, MAX_EXPONENT + 1):
            codes = np.clip(np.rint(part / 2.0**exponent), -LIMITS[codec], LIMITS[codec])
            errors[exponent] = ((part - codes * 2.0**exponent) ** 2).sum()
        got = dequantise(delta)[start : start + block].astype(np.float64)
        assert ((part - got) ** 2).sum() <= min(errors.values()) * (1 + 1e-9)


@given(st.sampled_from(CODECS), st.integers(1, 1500), st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_what_is_quantised_already_stays(codec, size, seed):
    charter = charter_of(codec, size)
    values = dequantise(random_delta(charter, np.random.default_rng(seed)))
    assert np.array_equal(dequantise(quantise(values, codec)), values)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3000), st.integers(-20, -1), st.integers(0, 2**32))
def test_top2_keeps_the_largest_and_loses_least_of_them(size, scale, seed):
    values = (np.random.default_rng(seed).standard_normal(size) * 2.0**scale).astype(np.float32)
    delta = quantise(values, "top2")
    got = dequantise(delta)
    for start in range(0, size, 1024):
        part, own = values[start : start + 1024], got[start : start + 1024]
        kept = own != 0
        assert kept.sum() == -(-part.size // 32)
        assert np.abs(part[kept]).min() >= np.abs(part[~kept]).max(initial=0)
        assert (np.sign(own[kept]) == np.sign(part[kept])).all()
        magnitudes = np.abs(part[kept]).astype(float)
        errors = [
            (np.minimum(np.abs(magnitudes - 2 * step), np.abs(magnitudes - 3 * step)) ** 2).sum()
            for step in 2.0 ** np.arange(MIN_EXPONENT, MAX_EXPONENT + 1)
        ]
        error = ((np.abs(own[kept]) - magnitudes) ** 2).sum()
        assert error <= min(errors) * (1 + 1e-9)


@pytest.mark.parametrize("codec", DENSE)
def test_values_beyond_the_range_saturate_and_tiny_ones_vanish(codec):
    values = np.array([1e30, -1e30], np.float32)
    assert dequantise(quantise(values, codec)).tolist() == [LIMITS[codec], -LIMITS[codec]]
    tiny = quantise(np.array([2.0**-26, -(2.0**-130), 0.0], np.float32), codec)
    assert tiny.codes.tolist() == [0, 0, 0]
    assert tiny.exponents.tolist() == [MIN_EXPONENT]


def test_of_two_exponents_that_are_equally_good_the_larger_is_taken():
    delta = quantise(np.array([2.0, -1.0], np.float32), "int8")
    assert (delta.codes.tolist(), delta.exponents.tolist()) == ([32, -16], [-4])


def test_one_outlier_gives_way_to_a_block_of_small_values():
    values = np.full(1024, 1 / 32, np.float32)
    values[0] = 1
    delta = quantise(values, "ternary")
    assert delta.exponents.tolist() == [-5]
    assert delta.codes.all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_training_that_diverged_is_not_sent(wrong):
    values = np.zeros(300_000, np.float32)
    values[299_999] = wrong
    with pytest.raises(LocalProtocolError, match=f"delta value 299999 is {wrong}"):
        quantise(values, "int8")


def test_a_matrix_is_not_a_delta():
    with pytest.raises(LocalProtocolError, match=r"got the shape \(2, 2\)"):
        quantise(np.zeros((2, 2), np.float32), "int8")


def test_a_delta_of_another_codec_is_our_error():
    with pytest.raises(LocalProtocolError, match="delta of codec int4, the charter has int8"):
        encode(charter_of("int8"), Delta(np.zeros(40, np.int8), np.zeros(1, np.int8), "int4"))
