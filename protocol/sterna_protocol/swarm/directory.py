"""What peers tell each other beside the rounds: the charter, and where other peers can be dialled.

Frames on the sync stream: one byte, the kind, then the record. Addresses are hints: a wrong one costs a
failed dial, never trust, because the connection itself proves the peer id.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, ClassVar

from pydantic import Field

from sterna_protocol.errors import MalformedMessage
from sterna_protocol.wire.encoding import Record
from sterna_protocol.wire.ids import Digest, PeerKey
from sterna_protocol.wire.limits import MAX_REQUEST_BYTES

MAX_ENTRIES = 128
"""Peers in one answer: more than a committee and its neighbours."""

MAX_ADDRESSES = 4
"""Addresses of one peer: IPv4 and IPv6, near and far."""

MAX_ADDRESS_LETTERS = 160
"""One full multiaddr; a relayed one with two peer ids takes as many."""

Address = Annotated[str, Field(min_length=1, max_length=MAX_ADDRESS_LETTERS)]


class DirectoryKind(IntEnum):
    """First byte of a directory frame; apart from those of anti-entropy (docs/spec/round.md)."""

    CHARTER_REQUEST = 0x60
    CHARTER = 0x61
    ADDRESSES_REQUEST = 0x62
    ADDRESSES = 0x63


class CharterRequest(Record):
    """ "Send me the signed charter of this swarm." """

    swarm: Digest


class AddressesRequest(Record):
    """ "Here I listen; where do the others?" """

    swarm: Digest
    own: Annotated[tuple[Address, ...], Field(max_length=MAX_ADDRESSES)]


class DirectoryEntry(Record):
    """One peer and where it listens."""

    peer: PeerKey
    addresses: Annotated[tuple[Address, ...], Field(min_length=1, max_length=MAX_ADDRESSES)]


class Addresses(Record):
    """Answer to ``AddressesRequest``."""

    max_bytes: ClassVar[int] = MAX_REQUEST_BYTES * 2

    entries: Annotated[tuple[DirectoryEntry, ...], Field(max_length=MAX_ENTRIES)]


def encode_charter_request(swarm: bytes) -> bytes:
    return bytes((DirectoryKind.CHARTER_REQUEST,)) + CharterRequest(swarm=swarm).encode()


def encode_addresses_request(swarm: bytes, own: tuple[str, ...]) -> bytes:
    """A request that also says where we listen; addresses beyond the limits are left out."""
    request = AddressesRequest(swarm=swarm, own=_sayable(own))
    return bytes((DirectoryKind.ADDRESSES_REQUEST,)) + request.encode()


def encode_addresses(known: dict[bytes, tuple[str, ...]]) -> bytes:
    """An answer with as many of the ``known`` peers as the limits allow."""
    entries = tuple(
        DirectoryEntry(peer=peer, addresses=_sayable(addresses))
        for peer, addresses in sorted(known.items())
        if _sayable(addresses)
    )[:MAX_ENTRIES]
    return bytes((DirectoryKind.ADDRESSES,)) + Addresses(entries=entries).encode()


def decode_addresses(data: bytes) -> dict[bytes, tuple[str, ...]]:
    """Peers and their addresses.

    Raises:
        MalformedMessage: not an ``Addresses`` frame.
    """
    if data[:1] != bytes((DirectoryKind.ADDRESSES,)):
        raise MalformedMessage(
            f"expected addresses, got a frame that starts with {data[:1].hex() or 'nothing'}"
        )
    return {entry.peer: entry.addresses for entry in Addresses.decode(data[1:]).entries}


def is_directory_request(data: bytes) -> bool:
    """Whether a sync request is answered by the directory rather than by the round."""
    return data[:1] in (
        bytes((DirectoryKind.CHARTER_REQUEST,)),
        bytes((DirectoryKind.ADDRESSES_REQUEST,)),
    )


def _sayable(addresses: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(address for address in addresses if 0 < len(address) <= MAX_ADDRESS_LETTERS)[:MAX_ADDRESSES]
