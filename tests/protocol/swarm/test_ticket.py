"""Tickets: short, whole again after a paste, and clear about what is wrong with them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna_protocol.errors import LocalProtocolError, MalformedMessage
from sterna_protocol.swarm import ticket as tickets
from sterna_protocol.swarm.ticket import Ticket, decode_ticket, encode_ticket
from sterna_protocol.wire import base58
from sterna_protocol.wire.ids import peer_name, sha256

NAME = peer_name(b"k" * 32)
TICKET = Ticket(
    swarm=b"\0" + b"s" * 31,
    addresses=(
        f"/ip4/192.168.1.17/tcp/40001/p2p/{NAME}",
        f"/ip6/2001:db8::7/tcp/40001/p2p/{NAME}",
        f"/dns/sterna.example.org/tcp/443/p2p/{NAME}",
    ),
    anchor_round=7,
    anchor=b"a" * 32,
)


def seal(body: bytes) -> str:
    """A ticket with a right checksum over any body."""
    return "sterna1" + base58.encode(body + sha256(b"sterna/ticket/1", body)[:4])


def body_of(text: str) -> bytes:
    return base58.decode(text.removeprefix("sterna1"))[:-4]


def test_a_ticket_comes_back_from_its_text():
    assert decode_ticket(encode_ticket(TICKET)) == TICKET


def test_a_ticket_with_three_addresses_is_short():
    addresses = tuple(
        f"/ip4/203.0.113.{i}/tcp/65535/p2p/{peer_name(b'k' * 31 + bytes([i]))}" for i in range(3)
    )
    text = encode_ticket(Ticket(b"\xff" * 32, addresses, 2**32 - 1, b"\xff" * 32))
    assert text.startswith("sterna1")
    assert text.isalnum()
    assert len(text) <= 270


@pytest.mark.parametrize(
    "address",
    [
        "/ip4/10.0.0.1/tcp/1",
        f"/ip4/010.0.0.1/tcp/1/p2p/{NAME}",
        f"/ip4/10.0.0.1/tcp/01/p2p/{NAME}",
        f"/ip4/10.0.0.1/tcp/65536/p2p/{NAME}",
        f"/ip4/300.0.0.1/tcp/1/p2p/{NAME}",
        f"/ip6/2001:DB8::7/tcp/1/p2p/{NAME}",
        f"/ip6/fe80::1%eth0/tcp/1/p2p/{NAME}",
        f"/dns/bad host/tcp/1/p2p/{NAME}",
        f"/dns4/example.org/tcp/1/p2p/{NAME}",
        "/ip4/10.0.0.1/tcp/1/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
        f"/ip4/10.0.0.1/udp/1/quic-v1/p2p/{NAME}",
        f"/ip4/10.0.0.1/tcp/1/p2p/{NAME}/p2p-circuit/p2p/{NAME}",
        f"/ip4/10.0.0.1/tcp/1/p2p/{NAME}/",
    ],
)
def test_an_unusual_address_stays_as_it_is_written(address):
    ticket = Ticket(b"s" * 32, (address,))
    assert decode_ticket(encode_ticket(ticket)).addresses == (address,)


hosts = st.one_of(
    st.ip_addresses(v=4).map(lambda ip: f"/ip4/{ip}"),
    st.ip_addresses(v=6).map(lambda ip: f"/ip6/{ip}"),
    st.from_regex(r"/dns/[a-z0-9.-]{1,30}", fullmatch=True),
    st.from_regex(r"/[ -~]{0,40}", fullmatch=True),
)
addresses = st.one_of(
    st.builds(
        "{}/tcp/{}/p2p/{}".format,
        hosts,
        st.integers(0, 70_000),
        st.binary(min_size=32, max_size=32).map(peer_name),
    ),
    hosts,
)


@given(
    st.builds(
        lambda swarm, addresses, anchor, invite: Ticket(swarm, tuple(addresses), *anchor, invite),
        st.binary(min_size=32, max_size=32),
        st.lists(addresses, max_size=8),
        st.just((0, b"")) | st.tuples(st.integers(1, 2**32 - 1), st.binary(min_size=32, max_size=32)),
        st.binary(max_size=100),
    )
)
def test_any_ticket_comes_back(ticket):
    assert decode_ticket(encode_ticket(ticket)) == ticket


def test_white_space_from_a_wrapped_paste_is_ignored():
    text = encode_ticket(TICKET)
    assert decode_ticket(f"  {text[:50]}\r\n    {text[50:]}\n") == TICKET


@given(st.integers(0, 400), st.sampled_from(base58.ALPHABET))
def test_one_wrong_letter_is_noticed(place, letter):
    text = encode_ticket(TICKET)
    place %= len(text)
    wrong = text[:place] + letter + text[place + 1 :]
    if wrong == text:
        return
    with pytest.raises(MalformedMessage):
        decode_ticket(wrong)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a ticket starts with 'sterna1'"),
        ("hello", "a ticket starts with 'sterna1', this starts with 'hello'"),
        ("sterna2abc", "another version .'sterna2'"),
        ("sterna1", "letters are missing|some are missing"),
        (encode_ticket(TICKET)[:-3], "a letter is wrong or some are missing"),
        (encode_ticket(TICKET) + "z", "a letter is wrong"),
        ("sterna1abc0def", "letter 4 is '0'"),
        ("sterna1abc\u00e9", "letter 4 is"),
        ("sterna1" + "z" * 5000, "the limit is 4096"),
    ],
)
def test_a_typo_is_explained(text, message):
    with pytest.raises(MalformedMessage, match=message):
        decode_ticket(text)


BODY = body_of(encode_ticket(Ticket(b"s" * 32, ("/ip4/1.2.3.4",))))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "ends inside its version"),
        (b"\2" + BODY[1:], "another version"),
        (BODY[:20], "ends inside its swarm"),
        (BODY[:35], "ends inside its anchor round"),
        (BODY[:33] + b"\0\0\0\1" + b"a" * 31, "ends inside its anchor"),
        (BODY[:37], "ends inside its address count"),
        (BODY[:38], "ends inside its address"),
        (BODY[:45], "ends inside its address"),
        (BODY[:38] + b"\x04", "unknown form 4"),
        (BODY[:38] + b"\x00\x02/\xff\0\0", "not ASCII"),
        (BODY[:38] + b"\x03\x01\xff\0\x01" + b"k" * 32 + b"\0\0", "not ASCII"),
        (BODY[:-1], "ends inside its invite length"),
        (BODY[:-2] + b"\0\5abcd", "ends inside its invite"),
        (BODY + b"\0", "not in its one encoding"),
        (BODY[:38] + b"\x00\x00\0\0", "not a multiaddr"),
        (BODY[:38] + b"\x00\x02/\n\0\0", "not a multiaddr"),
        (BODY[:37] + b"\x09" + b"\x00\x01/" * 9 + b"\0\0", "9 addresses, the limit is 8"),
        (BODY[:37] + b"\0" + (2049).to_bytes(2, "big") + bytes(2049), "invite of 2049 bytes"),
    ],
)
def test_a_wrong_body_under_a_right_checksum_is_refused(body, message):
    with pytest.raises(MalformedMessage, match=message):
        decode_ticket(seal(body))


def test_a_packable_address_written_as_text_is_refused():
    address = f"/ip4/1.2.3.4/tcp/1234/p2p/{NAME}".encode()
    body = BODY[:38] + b"\0" + bytes((len(address),)) + address + b"\0\0"
    with pytest.raises(MalformedMessage, match="one encoding"):
        decode_ticket(seal(body))


@given(st.binary(max_size=120))
def test_any_body_is_refused_or_canonical(body):
    text = seal(b"\1" + body)
    try:
        ticket = decode_ticket(text)
    except MalformedMessage:
        return
    assert encode_ticket(ticket) == text


@pytest.mark.parametrize(
    ("ticket", "message"),
    [
        (Ticket(b"s", ()), "swarm id of 1 bytes"),
        (Ticket(b"s" * 32, (), -1, b""), "anchor round -1"),
        (Ticket(b"s" * 32, (), 2**32, b"a" * 32), "anchor round 4294967296"),
        (Ticket(b"s" * 32, (), 1, b""), "anchor of 0 bytes for round 1"),
        (Ticket(b"s" * 32, (), 0, b"a" * 32), "anchor of 32 bytes for round 0"),
        (Ticket(b"s" * 32, ("/",) * 9), "9 addresses"),
        (Ticket(b"s" * 32, ("1.2.3.4",)), "not a multiaddr"),
        (Ticket(b"s" * 32, ("/dns/b\u00fccher",)), "not a multiaddr"),
        (Ticket(b"s" * 32, ("/" + "x" * 255,)), "address of 256 letters"),
        (Ticket(b"s" * 32, (), 0, b"", bytes(2049)), "invite of 2049 bytes"),
    ],
)
def test_a_ticket_that_cannot_be_is_our_error(ticket, message):
    with pytest.raises(LocalProtocolError, match=message):
        encode_ticket(ticket)


def test_the_largest_ticket_can_be_read_back():
    ticket = Ticket(
        b"\xff" * 32,
        tuple(f"/{'x' * 70}{i}" for i in range(tickets.MAX_ADDRESSES)),
        2**32 - 1,
        b"\xff" * 32,
        b"\xff" * tickets.MAX_INVITE_BYTES,
    )
    assert decode_ticket(encode_ticket(ticket)) == ticket
