import struct

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna.framing import PipeError
from sterna.net.pipe import MAX_FRAME_BYTES, Frames, pack

messages = st.lists(
    st.builds(
        lambda word, rest: [word, *rest],
        st.text(max_size=5),
        st.lists(st.integers(0, 9) | st.binary(max_size=9)),
    ),
    max_size=5,
)


@given(messages, st.lists(st.integers(1, 40), min_size=1))
def test_messages_come_out_as_they_went_in_however_the_bytes_are_cut(sent, cuts):
    data = b"".join(map(pack, sent))
    frames, received = Frames(), []
    position = 0
    while position < len(data):
        size = cuts[position % len(cuts)]
        received += frames.feed(data[position : position + size])
        position += size
    assert received == sent


@given(st.binary(max_size=64))
def test_any_bytes_are_messages_or_refused(data):
    frames = Frames()
    try:
        for message in frames.feed(data):
            assert isinstance(message[0], str)
    except PipeError:
        pass


def test_a_length_over_the_limit_is_refused_before_its_body_arrives():
    with pytest.raises(PipeError, match=str(MAX_FRAME_BYTES + 1)):
        list(Frames().feed(struct.pack(">I", MAX_FRAME_BYTES + 1)))


def test_a_message_over_the_limit_is_not_written():
    with pytest.raises(ValueError, match="limit"):
        pack(["x", bytes(MAX_FRAME_BYTES)])


@pytest.mark.parametrize(
    "body", [b"\xc1", b"", msgpack.packb({"a": 1}), msgpack.packb([]), msgpack.packb([7])]
)
def test_a_body_that_is_not_an_array_led_by_a_word_is_refused(body):
    with pytest.raises(PipeError):
        list(Frames().feed(struct.pack(">I", len(body)) + body))
