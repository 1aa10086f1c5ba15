"""Heads: how two nodes find out, in a few hundred bytes, what one of them lacks, and pull it.

Each request and each response is one byte, its topic, and a record. Requests are answered from what is held,
without a session:

    HEADS         my heads            -> HEADS        yours
    INVENTORY     a round             -> INVENTORY    ids of the messages held in it, if it is open
    FRAMES        ids of a round      -> FRAMES       those held, as many as fit
    CERTIFICATES  first round, count  -> FRAMES       certificates in order, as many as fit
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache
from typing import Annotated, ClassVar

from pydantic import Field

from sterna_protocol.errors import MalformedMessage
from sterna_protocol.wire.encoding import Record
from sterna_protocol.wire.ids import Digest, Round
from sterna_protocol.wire.limits import (
    MAX_FRAME_BYTES,
    MAX_INVENTORY,
    MAX_REQUEST_BYTES,
    MAX_RESPONSE_BYTES,
)

MAX_REMEMBERED_BYTES = 2048
"""Requests and responses that are remembered: heads of 128 bytes and inventories of 60 ids. All that is
remembered takes 1 MiB."""

MAX_ASKED_FRAMES = 1024
"""Ids in one request for frames: 34 bytes each, 35 of 64 KiB."""

MAX_ASKED_CERTIFICATES = 256
"""Certificates of one request; a response of 1 MiB holds 64 of the largest and all of a small swarm."""


class Topic(IntEnum):
    HEADS = 1
    INVENTORY = 2
    FRAMES = 3
    CERTIFICATES = 4


class Heads(Record):
    """Where a node stands. ``round_`` is open, ``head`` is the decision before it, ``messages`` the digest of
    the ids held of it, ``trains`` whether the node means to announce deltas."""

    max_bytes: ClassVar[int] = MAX_REQUEST_BYTES

    swarm: Digest
    round_: Round
    head: Digest
    messages: Digest
    trains: bool


class InventoryRequest(Record):
    max_bytes: ClassVar[int] = MAX_REQUEST_BYTES

    swarm: Digest
    round_: Round


class Inventory(Record):
    max_bytes: ClassVar[int] = MAX_RESPONSE_BYTES

    round_: Round
    ids: Annotated[tuple[Digest, ...], Field(max_length=MAX_INVENTORY)]


class FramesRequest(Record):
    max_bytes: ClassVar[int] = MAX_REQUEST_BYTES

    swarm: Digest
    round_: Round
    ids: Annotated[tuple[Digest, ...], Field(max_length=MAX_ASKED_FRAMES)]


class Frames(Record):
    max_bytes: ClassVar[int] = MAX_RESPONSE_BYTES

    frames: Annotated[
        tuple[Annotated[bytes, Field(max_length=MAX_FRAME_BYTES)], ...],
        Field(max_length=MAX_ASKED_FRAMES),
    ]


class CertificatesRequest(Record):
    max_bytes: ClassVar[int] = MAX_REQUEST_BYTES

    swarm: Digest
    first: Round
    count: Annotated[int, Field(ge=1, le=MAX_ASKED_CERTIFICATES)]


RequestRecord = Heads | InventoryRequest | FramesRequest | CertificatesRequest
ResponseRecord = Heads | Inventory | Frames

REQUESTS: dict[Topic, type[RequestRecord]] = {
    Topic.HEADS: Heads,
    Topic.INVENTORY: InventoryRequest,
    Topic.FRAMES: FramesRequest,
    Topic.CERTIFICATES: CertificatesRequest,
}
RESPONSES: dict[Topic, type[ResponseRecord]] = {
    Topic.HEADS: Heads,
    Topic.INVENTORY: Inventory,
    Topic.FRAMES: Frames,
}
_TOPIC_OF: dict[type[Record], Topic] = {
    record: topic for topics in (REQUESTS, RESPONSES) for topic, record in topics.items()
}


def encode_sync(record: RequestRecord | ResponseRecord) -> bytes:
    """The request or response as it travels."""
    return bytes((_TOPIC_OF[type(record)],)) + record.encode()


def decode_request(data: bytes) -> RequestRecord:
    """Raises MalformedMessage: not a request."""
    # [REJECT] The request is within its limit
    if not 1 < len(data) <= MAX_REQUEST_BYTES:
        raise MalformedMessage(f"sync request of {len(data)} bytes, the limit is {MAX_REQUEST_BYTES}")
    return _remembered_request(data) if len(data) <= MAX_REMEMBERED_BYTES else _request(data)


def decode_response(data: bytes) -> ResponseRecord:
    """Raises MalformedMessage: not a response."""
    # [REJECT] The response is within its limit
    if not 1 < len(data) <= MAX_RESPONSE_BYTES:
        raise MalformedMessage(f"sync response of {len(data)} bytes, the limit is {MAX_RESPONSE_BYTES}")
    return _remembered_response(data) if len(data) <= MAX_REMEMBERED_BYTES else _response(data)


def _request(data: bytes) -> RequestRecord:
    try:
        record = REQUESTS[Topic(data[0])]
    except (ValueError, KeyError) as error:
        raise MalformedMessage(f"no sync request has the topic {data[0]}") from error
    return record.decode(data[1:])


def _response(data: bytes) -> ResponseRecord:
    try:
        record = RESPONSES[Topic(data[0])]
    except (ValueError, KeyError) as error:
        raise MalformedMessage(f"no sync response has the topic {data[0]}") from error
    return record.decode(data[1:])


# Nodes that stand at the same place say so in the same bytes, every two seconds.
_remembered_request = lru_cache(maxsize=256)(_request)
_remembered_response = lru_cache(maxsize=256)(_response)
