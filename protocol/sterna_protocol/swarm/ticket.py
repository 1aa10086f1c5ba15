"""The ticket: one pasteable string with which anybody finds a swarm.

::

    "sterna1" base58(01 | swarm 32 | anchor round u32 | anchor 32, absent when the round is 0
                     | count u8 | addresses | invite length u16 | invite | checksum 4)

The checksum is the first four bytes of SHA-256("sterna/ticket/1" 00 || all before it). An address is one
byte, its form, and then::

    0  any multiaddr        length u8 | text
    1  /ip4/A/tcp/P/p2p/N   A 4  | P u16 | key of N 32
    2  /ip6/A/tcp/P/p2p/N   A 16 | P u16 | key of N 32
    3  /dns/H/tcp/P/p2p/N   length u8 | H | P u16 | key of N 32

An address that one of the forms 1 to 3 can hold is never written as text.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from sterna_protocol.errors import LocalProtocolError, MalformedMessage
from sterna_protocol.wire import base58
from sterna_protocol.wire.ids import ID_BYTES, parse_peer_name, peer_name, sha256

PREFIX = "sterna1"

MAX_ADDRESSES = 8
"""Addresses of a ticket: two for each of four peers; it still fits a chat message."""

MAX_ADDRESS_BYTES = 255
"""Length of one address as text; a relayed one with two peer ids takes 160."""

MAX_INVITE_BYTES = 2048
"""Length of the invite; a chain of three signed links takes 600."""

_VERSION = b"\1"
_CHECKSUM_BYTES = 4
_TEXT, _IP4, _IP6, _DNS = range(4)
_PACKABLE = re.compile(r"/(ip4|ip6|dns)/([^/]+)/tcp/(\d{1,5})/p2p/([^/]+)", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Ticket:
    """Where a swarm is and how far its issuer knew it to be.

    Args:
        swarm: the swarm id, the digest of its charter.
        addresses: multiaddrs of peers, as text.
        anchor_round: the newest round whose certificate the issuer knew; 0 for none.
        anchor: the id of that round's decision, or empty: a chain without it is a fork.
        invite: what admits the bearer, or empty.
    """

    swarm: bytes
    addresses: tuple[str, ...]
    anchor_round: int = 0
    anchor: bytes = b""
    invite: bytes = b""


def encode_ticket(ticket: Ticket) -> str:
    """The one string of ``ticket``.

    Raises:
        LocalProtocolError: a field is out of range.
    """
    _require_valid(ticket)
    body = b"".join(
        (
            _VERSION,
            ticket.swarm,
            ticket.anchor_round.to_bytes(4, "big"),
            ticket.anchor,
            bytes((len(ticket.addresses),)),
            *(_pack_address(address) for address in ticket.addresses),
            len(ticket.invite).to_bytes(2, "big"),
            ticket.invite,
        )
    )
    return PREFIX + base58.encode(body + _checksum(body))


def decode_ticket(text: str) -> Ticket:
    """The ticket behind ``text``; white space, as a wrapped line leaves it, is ignored.

    Raises:
        MalformedMessage: not a ticket; the message says what is wrong with it.
    """
    text = "".join(text.split())
    # [REJECT] It starts as a ticket of this version does
    if not text.startswith(PREFIX):
        if text.startswith(PREFIX[:-1]):
            raise MalformedMessage(f"ticket of another version ({text[: len(PREFIX)]!r}): update Sterna")
        raise MalformedMessage(f"a ticket starts with {PREFIX!r}, this starts with {text[: len(PREFIX)]!r}")
    # [REJECT] Its letters are base58
    try:
        data = base58.decode(text.removeprefix(PREFIX))
    except MalformedMessage as error:
        raise MalformedMessage(f"ticket, after {PREFIX!r}: {error}; copy the ticket again") from error
    body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    # [REJECT] The checksum is right
    if checksum != _checksum(body):
        raise MalformedMessage(
            f"ticket of {len(text)} letters: a letter is wrong or some are missing; copy the ticket again"
        )
    # [REJECT] The fields have their lengths and nothing follows them
    reader = _Reader(body)
    if reader.take(1, "version") != _VERSION:
        raise MalformedMessage("ticket body of another version: update Sterna")
    swarm = reader.take(ID_BYTES, "swarm")
    anchor_round = reader.number(4, "anchor round")
    anchor = reader.take(ID_BYTES, "anchor") if anchor_round else b""
    addresses = tuple(_unpack_address(reader) for _ in range(reader.number(1, "address count")))
    invite = reader.take(reader.number(2, "invite length"), "invite")
    ticket = Ticket(swarm, addresses, anchor_round, anchor, invite)
    # [REJECT] The string is the one that the ticket has
    try:
        canonical = encode_ticket(ticket)
    except LocalProtocolError as error:
        raise MalformedMessage(str(error)) from error
    if canonical != text:
        raise MalformedMessage("ticket is not in its one encoding")
    return ticket


class _Reader:
    """Takes fields from the front of a ticket's body."""

    def __init__(self, data: bytes) -> None:
        self._rest = data

    def take(self, count: int, field: str) -> bytes:
        if count > len(self._rest):
            raise MalformedMessage(f"ticket ends inside its {field}")
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken

    def number(self, count: int, field: str) -> int:
        return int.from_bytes(self.take(count, field), "big")


def _require_valid(ticket: Ticket) -> None:
    if len(ticket.swarm) != ID_BYTES:
        raise LocalProtocolError(f"ticket with a swarm id of {len(ticket.swarm)} bytes, expected {ID_BYTES}")
    if not 0 <= ticket.anchor_round < 2**32:
        raise LocalProtocolError(f"ticket with the anchor round {ticket.anchor_round}")
    if len(ticket.anchor) != (ID_BYTES if ticket.anchor_round else 0):
        raise LocalProtocolError(
            f"ticket with an anchor of {len(ticket.anchor)} bytes for round {ticket.anchor_round}"
        )
    if len(ticket.addresses) > MAX_ADDRESSES:
        raise LocalProtocolError(
            f"ticket with {len(ticket.addresses)} addresses, the limit is {MAX_ADDRESSES}"
        )
    for address in ticket.addresses:
        if not address.startswith("/") or not address.isascii() or not address.isprintable():
            raise LocalProtocolError(f"ticket address {address!r} is not a multiaddr (/ip4/.../tcp/...)")
        if len(address) > MAX_ADDRESS_BYTES:
            raise LocalProtocolError(
                f"ticket address of {len(address)} letters, the limit is {MAX_ADDRESS_BYTES}"
            )
    if len(ticket.invite) > MAX_INVITE_BYTES:
        raise LocalProtocolError(
            f"ticket with an invite of {len(ticket.invite)} bytes, the limit is {MAX_INVITE_BYTES}"
        )


def _checksum(body: bytes) -> bytes:
    return sha256(b"sterna/ticket/1", body)[:_CHECKSUM_BYTES]


def _pack_address(address: str) -> bytes:
    packed = _pack_known_form(address)
    # A packed address that reads back otherwise (007.0.0.1, port 080, an uncommon IPv6 spelling) stays text.
    if packed is not None and _unpack_address(_Reader(packed)) == address:
        return packed
    return bytes((_TEXT, len(address))) + address.encode("ascii")


def _pack_known_form(address: str) -> bytes | None:
    match = _PACKABLE.fullmatch(address)
    if match is None or int(match[3]) >= 2**16:
        return None
    try:
        tail = int(match[3]).to_bytes(2, "big") + parse_peer_name(match[4])
        match match[1]:
            case "ip4":
                return bytes((_IP4,)) + ipaddress.IPv4Address(match[2]).packed + tail
            case "ip6":
                return bytes((_IP6,)) + ipaddress.IPv6Address(match[2]).packed + tail
    except (MalformedMessage, ipaddress.AddressValueError):
        return None
    if _HOST.fullmatch(match[2]) is None:
        return None
    return bytes((_DNS, len(match[2]))) + match[2].encode("ascii") + tail


def _unpack_address(reader: _Reader) -> str:
    form = reader.number(1, "address")
    match form:
        case 0:
            text = reader.take(reader.number(1, "address"), "address")
            if not text.isascii():
                raise MalformedMessage(f"ticket address {text!r} is not ASCII")
            return text.decode("ascii")
        case 1:
            host = f"/ip4/{ipaddress.IPv4Address(reader.take(4, 'address'))}"
        case 2:
            host = f"/ip6/{ipaddress.IPv6Address(reader.take(16, 'address'))}"
        case 3:
            name = reader.take(reader.number(1, "address"), "address")
            if not name.isascii():
                raise MalformedMessage(f"ticket address with the host {name!r} is not ASCII")
            host = f"/dns/{name.decode('ascii')}"
        case _:
            raise MalformedMessage(f"ticket address of the unknown form {form}")
    port = reader.number(2, "address")
    return f"{host}/tcp/{port}/p2p/{peer_name(reader.take(ID_BYTES, 'address'))}"
