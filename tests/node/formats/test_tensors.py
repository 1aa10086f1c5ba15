"""The safetensors gate: what the library reads we write, and what a stranger twists we refuse."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from sterna.errors import ConfigError
from sterna.formats.tensors import METADATA_BYTES, Expected, decode_tensors, encode_tensors

TENSORS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.array([7, 8, 9], np.uint8),
    "c": np.array([[-1]], np.int32),
}
EXPECTED = {
    "b": Expected(("F32",), (2, 3)),
    "a": Expected(("U8",), (None,)),
    "c": Expected(("I32",), (1, None)),
}
METADATA = {"round": "3", "format": "pt"}
GOOD = encode_tensors(TENSORS, METADATA)


def file_of(header: Any, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def changed(**entry: Any) -> bytes:
    """A file of one tensor "b", whose header entry is changed."""
    good = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    return file_of({"b": {**good, **entry}}, bytes(24))


def decode_b(data: bytes) -> np.ndarray[Any, Any]:
    return decode_tensors(data, {"b": EXPECTED["b"]}, "FILE")[0]["b"]


def test_what_we_write_the_library_reads() -> None:
    read = load(GOOD)
    assert read.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.dtype
        np.testing.assert_array_equal(read[name], tensor)


def test_what_we_or_the_library_write_we_read() -> None:
    for data, metadata in ((GOOD, METADATA), (save(TENSORS), {})):
        read, found = decode_tensors(data, EXPECTED, "FILE")
        assert found == metadata
        for name, tensor in TENSORS.items():
            np.testing.assert_array_equal(read[name], tensor)


def test_the_bytes_depend_on_the_values_alone() -> None:
    turned = {name: np.asfortranarray(TENSORS[name]) for name in reversed(TENSORS)}
    assert encode_tensors(turned, dict(reversed(METADATA.items()))) == GOOD
    big_endian = {name: tensor.astype(tensor.dtype.newbyteorder(">")) for name, tensor in TENSORS.items()}
    assert encode_tensors(big_endian, METADATA) == GOOD


def test_half_precision_becomes_float32_exactly() -> None:
    values = np.array([1.5, -0.25, 2.0**-20, 0, 3, 100], np.float32).reshape(2, 3)
    bfloat16 = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    entry = {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}
    expected = {"b": Expected(("F16", "BF16"), (2, 3))}
    read, _ = decode_tensors(file_of({"b": entry}, bfloat16), expected, "FILE")
    np.testing.assert_array_equal(read["b"], values)
    float16 = values.astype("<f2")
    read, _ = decode_tensors(file_of({"b": {**entry, "dtype": "F16"}}, float16.tobytes()), expected, "FILE")
    np.testing.assert_array_equal(read["b"], float16.astype(np.float32))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "header of 0 bytes"),
        (GOOD[:7], "at most"),
        (changed()[:-1], "23 bytes of data, the tensors take 24"),
        (changed() + b"\0", "25 bytes of data"),
        (struct.pack("<Q", 2**63) + GOOD[8:], "header of 9223372036854775808 bytes"),
        (file_of(b"", b""), "not JSON"),
        (file_of(b"\xff{}", b""), "not JSON"),
        (file_of(b"[1]", b""), "not a table"),
        (file_of(b"[" * 50_000, b""), "not JSON"),
        (file_of(b'{"b": NaN}', b""), "NaN in its header"),
        (file_of(b'{"b": {}, "b": {}}', b""), "stands twice"),
        (file_of(b'{"b": {"dtype": "F32", "dtype": "F32"}}', b""), "stands twice"),
        (file_of({}, b""), "missing tensor 'b'"),
        (file_of({"b": {}, "../../etc/passwd": {}}, b""), "unknown tensor '../../etc/passwd'"),
        (file_of({"b": {}, "__metadata__": {"a": 1}}, b""), "not text"),
        (file_of({"b": {}, "__metadata__": []}, b""), "not text"),
        (file_of({"b": 1}, b""), "not described"),
        (changed(extra=1), "not described"),
        (changed(dtype="I32"), "expected F32"),
        (changed(dtype=["F32"]), "expected F32"),
        (changed(shape=[3, 2]), r"\[3, 2\], expected F32 \[2, 3\]"),
        (changed(shape=[6]), "expected F32"),
        (changed(shape=6), "sizes that are none"),
        (changed(shape=[2, -3]), "sizes that are none"),
        (changed(shape=[2, 3.0]), "sizes that are none"),
        (changed(shape=[2, True]), "sizes that are none"),
        (changed(data_offsets=[0, 2**70]), "sizes that are none"),
        (changed(data_offsets=[0, 24, 24]), "sizes that are none"),
        (changed(data_offsets=[0, 20]), "takes 24 bytes"),
        (changed(data_offsets=[4, 28]), "begins at 4"),
        (
            file_of({"b": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}, bytes(28)),
            "28 bytes of",
        ),
    ],
)
def test_each_flaw_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"FILE is not the expected adapter file: .*{reason}"):
        decode_b(data)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_is_refused(value: float) -> None:
    tensor = TENSORS["b"].copy()
    tensor[1, 2] = value
    with pytest.raises(ConfigError, match="NaN or infinity"):
        decode_b(encode_tensors({"b": tensor}, {}))


def test_tensors_that_share_bytes_are_refused() -> None:
    entry = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    expected = {"a": EXPECTED["b"], "b": EXPECTED["b"]}
    with pytest.raises(ConfigError, match="begins at 0, expected 24"):
        decode_tensors(file_of({"a": entry, "b": entry}, bytes(24)), expected, "FILE")


def test_a_header_longer_than_an_honest_one_is_not_parsed() -> None:
    padding = b" " * (METADATA_BYTES + 1000)
    with pytest.raises(ConfigError, match=r"header of .* are allowed"):
        decode_b(file_of(b"{" + padding, b""))


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ConfigError):
        decode_tensors(data, EXPECTED, "FILE")


@given(st.data())
def test_a_mutated_file_is_refused_or_has_the_expected_form(data: st.DataObject) -> None:
    mutated = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, len(GOOD) - 1))] = data.draw(st.integers(0, 255))
    try:
        read, _ = decode_tensors(bytes(mutated), EXPECTED, "FILE")
    except ConfigError:
        return
    assert {name: tensor.shape for name, tensor in read.items()} == {"a": (3,), "b": (2, 3), "c": (1, 1)}
    assert np.isfinite(read["b"]).all()
