"""How a newcomer gets the charter: one request on the sync stream, answered with the signed charter.

The first byte, the kind, lies apart from those of anti-entropy (round/heads.py).
"""

from __future__ import annotations

from sterna_protocol.swarm.charter import SignedCharter
from sterna_protocol.wire.encoding import Record
from sterna_protocol.wire.ids import Digest

CHARTER_REQUEST = 0x60


class CharterRequest(Record):
    """ "Send me the signed charter of this swarm." """

    swarm: Digest


def encode_charter_request(swarm: bytes) -> bytes:
    return bytes((CHARTER_REQUEST,)) + CharterRequest(swarm=swarm).encode()


def is_charter_request(data: bytes) -> bool:
    """Whether a sync request is one for the charter, well formed or not."""
    return data[:1] == bytes((CHARTER_REQUEST,))


def answer_charter_request(data: bytes, signed: SignedCharter) -> bytes:
    """The encoded charter, or nothing if the request is about another swarm.

    Raises:
        MalformedMessage: not a charter request.
    """
    asked = CharterRequest.decode(data[1:])
    return signed.encode() if asked.swarm == signed.charter.swarm_id else b""
