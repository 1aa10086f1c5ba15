"""The charter goes to whoever asks for this swarm."""

from __future__ import annotations

import pytest

from sterna_protocol.errors import MalformedMessage
from sterna_protocol.swarm.charter import sign_charter
from sterna_protocol.swarm.introduction import (
    answer_charter_request,
    encode_charter_request,
    is_charter_request,
)
from tests.support.charters import key, small_charter

SIGNED = sign_charter(small_charter(), (key(1),))


def test_whoever_asks_for_this_swarm_gets_its_signed_charter() -> None:
    request = encode_charter_request(SIGNED.charter.swarm_id)
    assert is_charter_request(request)
    assert answer_charter_request(request, SIGNED) == SIGNED.encode()


def test_whoever_asks_for_another_swarm_gets_nothing() -> None:
    assert answer_charter_request(encode_charter_request(b"o" * 32), SIGNED) == b""


@pytest.mark.parametrize("data", [b"\x60", b"\x60junk", b"\x60" + bytes(40)])
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        answer_charter_request(data, SIGNED)


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x61"])
def test_other_requests_are_left_to_the_round(data: bytes) -> None:
    assert not is_charter_request(data)
