"""Addresses heard from others: their form, and how far they are believed."""

import pytest
import trio

from sterna.net.discovery import MAX_ADDRESSES, Scope, ask, believable, encode, scope_of
from sterna.net.streams import Lost, Misbehaved
from tests.node.net.memory import pair

NAME = "12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5"


def address(where: str) -> str:
    return f"{where}/tcp/4001/p2p/{NAME}"


def asked(answer: bytes) -> list[str]:
    async def main() -> list[str]:
        ours, theirs = pair()
        await theirs.write(answer)
        await theirs.close()
        return await ask(ours)

    return trio.run(main)


def test_what_is_encoded_is_heard() -> None:
    addresses = [address(f"/ip4/192.0.2.{i}") for i in range(MAX_ADDRESSES)]
    assert asked(encode(addresses)) == addresses
    assert asked(encode([])) == []


def test_what_does_not_fit_is_left_out() -> None:
    addresses = [address(f"/ip4/192.0.2.{i}") for i in range(MAX_ADDRESSES + 4)]
    assert len(asked(encode(["/dns/" + "x" * 300, *addresses]))) == MAX_ADDRESSES


def test_an_address_of_an_unknown_kind_is_skipped() -> None:
    good = address("/ip4/192.0.2.1")
    assert asked(encode(["/future/1", good, "/ip4/192.0.2.1/tcp/1"])) == [good]
    assert asked(b"\x01\x00\x02\xff\xfe") == []


@pytest.mark.parametrize("answer", [bytes([MAX_ADDRESSES + 1]), b"\x01\x01\x01" + bytes(257)])
def test_an_answer_over_a_limit_is_an_offence(answer: bytes) -> None:
    with pytest.raises(Misbehaved):
        asked(answer)


@pytest.mark.parametrize("answer", [b"", b"\x01", b"\x01\x00\x05abc"])
def test_an_answer_that_ends_early_is_lost(answer: bytes) -> None:
    with pytest.raises(Lost):
        asked(answer)


@pytest.mark.parametrize(
    ("where", "scope"),
    [
        ("/ip4/127.0.0.1", Scope.LOOPBACK),
        ("/ip6/::1", Scope.LOOPBACK),
        ("/ip4/10.1.2.3", Scope.PRIVATE),
        ("/ip4/192.168.1.1", Scope.PRIVATE),
        ("/ip6/fd00::1", Scope.PRIVATE),
        ("/ip4/9.9.9.9", Scope.PUBLIC),
        ("/dns4/peer.example.org", Scope.PUBLIC),
        ("/ip4/0.0.0.0", Scope.NOWHERE),
        ("/ip4/224.0.0.1", Scope.NOWHERE),
        ("/ip4/169.254.169.254", Scope.NOWHERE),
        ("/ip6/fe80::1", Scope.NOWHERE),
        ("/ip4/nonsense", Scope.NOWHERE),
        ("", Scope.NOWHERE),
    ],
)
def test_the_scope_of_an_address(where: str, scope: Scope) -> None:
    assert scope_of(address(where)) == scope


def test_nobody_sends_us_nearer_than_it_is_itself() -> None:
    loopback, private, public = map(address, ("/ip4/127.0.0.1", "/ip4/10.0.0.1", "/ip4/9.9.9.9"))
    everything = [loopback, private, public, address("/ip4/0.0.0.0")]
    assert believable(everything, "/ip4/127.0.0.1/tcp/1") == [loopback, private, public]
    assert believable(everything, "/ip4/10.9.9.9/tcp/1") == [private, public]
    assert believable(everything, "/ip4/9.9.9.1/tcp/1") == [public]
    assert believable(everything, "") == []
