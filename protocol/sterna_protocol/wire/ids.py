"""Ids: what a peer, a swarm, a blob and a message are called on the wire and on the screen."""

from __future__ import annotations

import hashlib
from typing import Annotated

from pydantic import Field

from sterna_protocol.errors import MalformedMessage
from sterna_protocol.wire import base58

ID_BYTES = 32

PeerKey = Annotated[bytes, Field(min_length=ID_BYTES, max_length=ID_BYTES)]
"""The raw Ed25519 public key of a peer; the id *is* the key."""

Digest = Annotated[bytes, Field(min_length=ID_BYTES, max_length=ID_BYTES)]
"""A SHA-256 value: of a blob (wire/chunks.py), a charter, a decision or a message."""

Round = Annotated[int, Field(ge=0, le=2**32 - 1)]
"""Number of a round; 0 stands for the state before the first merge."""

Attempt = Annotated[int, Field(ge=0, le=2**16 - 1)]
"""Number of a try to decide a round, from 0."""

# libp2p PeerID of an Ed25519 key: identity multihash (0x00, length 0x24) of the protobuf
# PublicKey {type: Ed25519 (08 01), data: 32 bytes (12 20)}; libp2p specs, peer-ids.md.
_PEER_NAME_PREFIX = bytes.fromhex("002408011220")
_PEER_NAME_LETTERS = 52


def peer_name(key: bytes) -> str:
    """The libp2p PeerID string of a raw Ed25519 public key ("12D3KooW...")."""
    return base58.encode(_PEER_NAME_PREFIX + key)


def parse_peer_name(name: str) -> bytes:
    """The raw Ed25519 public key behind a PeerID string.

    Raises:
        MalformedMessage: not base58, or not the PeerID of an Ed25519 key.
    """
    if len(name) != _PEER_NAME_LETTERS:
        raise MalformedMessage(
            f"peer id {name[:60]!r} has {len(name)} letters, that of an Ed25519 key has {_PEER_NAME_LETTERS}"
        )
    try:
        raw = base58.decode(name)
    except MalformedMessage as error:
        raise MalformedMessage(f"peer id {name!r}: {error}") from error
    key = raw.removeprefix(_PEER_NAME_PREFIX)
    if len(raw) != len(_PEER_NAME_PREFIX) + ID_BYTES or len(key) != ID_BYTES:
        raise MalformedMessage(f"peer id {name!r} is not the id of an Ed25519 key")
    return key


def short(identifier: bytes) -> str:
    """Eight hex digits of an id, for logs and tables; never for comparison."""
    return identifier[:4].hex()


def sha256(domain: bytes, *parts: bytes) -> bytes:
    """SHA-256 of ``domain || parts``; the domain ends in a zero byte so that no domain prefixes another."""
    digest = hashlib.sha256(domain + b"\0")
    for part in parts:
        digest.update(part)
    return digest.digest()
