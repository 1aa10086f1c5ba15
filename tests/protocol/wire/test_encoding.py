"""Canonical msgpack: one value has one encoding, and every other is refused."""

from typing import Annotated, ClassVar

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from sterna_protocol.errors import LocalProtocolError, MalformedMessage
from sterna_protocol.wire.encoding import Record


class Inner(Record):
    flag: bool
    word: str


class Outer(Record):
    max_bytes: ClassVar[int] = 200

    number: Annotated[int, Field(ge=0, le=2**53)]
    data: bytes
    inner: Inner
    several: tuple[Inner, ...]


VALUE = Outer(
    number=300, data=b"\x01", inner=Inner(flag=True, word="a"), several=(Inner(flag=False, word=""),)
)
PLAIN = {1: 300, 2: b"\x01", 3: {1: True, 2: "a"}, 4: [{1: False, 2: ""}]}


def test_fields_are_numbered_from_one_in_order():
    assert VALUE.encode().hex() == (
        "84"  # a map of four
        "01cd012c"  # 1: 300
        "02c40101"  # 2: one byte
        "038201c302a161"  # 3: {1: true, 2: "a"}
        "04918201c202a0"  # 4: [{1: false, 2: ""}]
    )
    assert VALUE.encode() == msgpack.packb(PLAIN, use_bin_type=True)
    assert Outer.decode(VALUE.encode()) == VALUE


inners = st.builds(Inner, flag=st.booleans(), word=st.text(max_size=5))
outers = st.builds(
    Outer,
    number=st.integers(0, 2**53),
    data=st.binary(max_size=20),
    inner=inners,
    several=st.lists(inners, max_size=3).map(tuple),
)


@given(outers)
def test_a_record_comes_back_from_its_bytes(value):
    assert Outer.decode(value.encode()) == value


@given(st.binary(max_size=220))
def test_any_bytes_are_refused_or_canonical(data):
    try:
        value = Outer.decode(data)
    except MalformedMessage:
        return
    assert value.encode() == data


@given(outers, st.data())
def test_mutated_bytes_are_refused_or_canonical(value, data):
    mutated = bytearray(value.encode())
    place = data.draw(st.integers(0, len(mutated) - 1))
    mutated[place] ^= data.draw(st.integers(1, 255))
    try:
        decoded = Outer.decode(bytes(mutated))
    except MalformedMessage:
        return
    assert decoded.encode() == bytes(mutated)


def _packed(**changes: object) -> bytes:
    packed: bytes = msgpack.packb(
        PLAIN | {int(name[1:]): v for name, v in changes.items()}, use_bin_type=True
    )
    return packed


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not msgpack"),
        (VALUE.encode()[:-1], "not msgpack"),
        (VALUE.encode() + b"\0", "not msgpack"),
        (b"\xc1", "not msgpack"),
        (b"\x81" * 100, "not msgpack"),
        (b"\x91" * 199 + b"\x00", "Outer"),
        (b"\x80", r"has the fields 1\.\.4"),
        (b"\x05", "Input should be"),
        (b"\x81\x01\x05", r"has the fields 1\.\.4"),
        (b"\x84" + bytes([1, 5, 2, 5, 3, 5, 5, 5]), r"has the fields 1\.\.4"),
        (b"\xdf\xff\xff\xff\xff", "not msgpack"),
        (b"\xde\x00\x41" + b"\x01\x01" * 65, "not msgpack"),
        (_packed(_1=-1), "number: Input should be greater"),
        (_packed(_1=2**60), "number: Input should be less"),
        (_packed(_1=True), "number: Input should be a valid integer"),
        (_packed(_1=3.0), "number: Input should be a valid integer"),
        (_packed(_1=None), "number: Input should be a valid integer"),
        (_packed(_1="300"), "number: Input should be a valid integer"),
        (_packed(_2="text"), "data: Input should be a valid bytes"),
        (_packed(_3=5), "inner: Input should be"),
        (_packed(_3={1: 1, 2: "a"}), "inner.flag"),
        (_packed(_3={1: True, 2: b"a"}), "inner.word"),
        (_packed(_4={}), "several"),
        (_packed(_2=msgpack.ExtType(5, b"")), "data"),
        (_packed(_2=msgpack.Timestamp(0)), "not msgpack"),
        (_packed(_2=b"x" * 200), "the limit is 200"),
    ],
)
def test_what_is_not_this_record_is_refused(data, message):
    with pytest.raises(MalformedMessage, match=message):
        Outer.decode(data)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(VALUE.encode().replace(b"\x01\xcd\x01\x2c", b"\x01\xce\0\0\x01\x2c"), id="long integer"),
        pytest.param(VALUE.encode().replace(b"\xc4\x01", b"\xc5\x00\x01"), id="long length"),
        pytest.param(b"\xde\x00\x04" + VALUE.encode()[1:], id="long map"),
        pytest.param(VALUE.encode().replace(b"\xa1a", b"\xd9\x01a"), id="long string"),
        pytest.param(msgpack.packb({k: PLAIN[k] for k in (2, 1, 3, 4)}, use_bin_type=True), id="other order"),
        pytest.param(b"\x85" + VALUE.encode()[1:5] + VALUE.encode()[1:], id="a field twice"),
        pytest.param(
            msgpack.packb(dict(zip(Outer.model_fields, PLAIN.values(), strict=True)), use_bin_type=True),
            id="names for numbers",
        ),
    ],
)
def test_other_encodings_of_a_value_are_refused(data):
    assert data != VALUE.encode()
    with pytest.raises(MalformedMessage, match="not the canonical encoding"):
        Outer.decode(data)


def test_a_strangers_key_is_shown_escaped_and_short():
    with pytest.raises(MalformedMessage) as caught:
        Outer.decode(msgpack.packb({"\x1b[2J" + "x" * 150: 1}))
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_our_own_oversized_record_is_our_error():
    with pytest.raises(LocalProtocolError, match="the limit is 200"):
        VALUE.model_copy(update={"data": b"x" * 200}).encode()


def test_records_are_frozen():
    with pytest.raises(ValidationError):
        VALUE.number = 5
