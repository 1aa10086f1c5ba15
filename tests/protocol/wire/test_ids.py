"""Ids: peer names as libp2p writes them, base58, domain-separated digests."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna_protocol.errors import MalformedMessage
from sterna_protocol.wire import base58
from sterna_protocol.wire.ids import parse_peer_name, peer_name, sha256, short


# The key and name of the example in libp2p's specs/peer-ids/peer-ids.md.
def test_a_peer_is_named_as_libp2p_names_it():
    key = bytes.fromhex("1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e")
    assert peer_name(key) == "12D3KooWBtg3aaRMjxwedh83aGiUkwSxDwUZkzuJcfaqUmo7R3pq"


@given(st.binary(min_size=32, max_size=32))
def test_a_peer_name_gives_its_key_back(key):
    assert parse_peer_name(peer_name(key)) == key


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "has 0 letters"),
        ("12D3KooW", "has 8 letters"),
        (peer_name(b"k" * 32) + "1", "has 53 letters"),
        ("0" + peer_name(b"k" * 32)[1:], "letter 1 is '0'"),
        ("z" * 52, "not the id of an Ed25519 key"),
        ("1" * 52, "not the id of an Ed25519 key"),
        ("QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"[:46] + "111111", "not the id"),
    ],
)
def test_other_names_are_refused(name, message):
    with pytest.raises(MalformedMessage, match=message):
        parse_peer_name(name)


@given(st.text(alphabet=base58.ALPHABET, min_size=52, max_size=52))
def test_any_letters_are_refused_or_the_one_name(name):
    try:
        key = parse_peer_name(name)
    except MalformedMessage:
        return
    assert peer_name(key) == name


@given(st.binary(max_size=60))
def test_base58_gives_its_bytes_back(data):
    assert base58.decode(base58.encode(data)) == data


@given(st.text(alphabet=base58.ALPHABET, max_size=60))
def test_base58_has_one_spelling(text):
    assert base58.encode(base58.decode(text)) == text


# From the test vectors of the base58 draft, draft-msporny-base58-03 section 5.
@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"Hello World!", "2NEpo7TZRRrLZSi2U"),
        (
            b"The quick brown fox jumps over the lazy dog.",
            "USm3fpXnKG5EUBx2ndxBDMPVciP5hGey2Jh4NDv6gmeo1LkMeiKrLJUUBk6Z",
        ),
        (bytes.fromhex("0000287fb4cd"), "11233QC4"),
    ],
)
def test_base58_agrees_with_others(data, text):
    assert base58.encode(data) == text
    assert base58.decode(text) == data


def test_long_base58_is_refused_before_the_arithmetic():
    with pytest.raises(MalformedMessage, match="the limit is 4096"):
        base58.decode("2" * 4097)


def test_domains_do_not_run_into_the_data():
    assert sha256(b"a", b"bc") == hashlib.sha256(b"a\0bc").digest()
    assert sha256(b"a", b"b", b"c") == sha256(b"a", b"bc") != sha256(b"ab", b"c")


def test_short_ids_are_eight_hex_digits():
    assert short(b"\xab" * 32) == "abababab"
