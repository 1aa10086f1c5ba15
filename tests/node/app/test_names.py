"""Peers by the beginning of their ids: as few letters as tell them apart, and never a guess."""

from __future__ import annotations

import pytest

from sterna.app.names import COMMON, FEWEST_LETTERS, find_peer, shortened
from sterna.errors import ConfigError
from sterna_protocol.wire.ids import peer_name
from tests.support.charters import key

PEERS = [key(number).peer for number in range(20)]


def test_short_names_are_found_again_and_no_longer_than_it_takes() -> None:
    short = shortened(map(peer_name, PEERS))
    assert {len(name) for name in short.values()} == {FEWEST_LETTERS}
    assert all(peer_name(find_peer(name, PEERS)) == whole for whole, name in short.items())


def test_names_that_begin_alike_are_given_more_letters() -> None:
    assert shortened([f"{COMMON}abcdx1", f"{COMMON}abcdy1"]) == {
        f"{COMMON}abcdx1": f"{COMMON}abcdx",
        f"{COMMON}abcdy1": f"{COMMON}abcdy",
    }


def test_a_whole_id_needs_to_be_known_to_nobody() -> None:
    assert find_peer(peer_name(PEERS[0]), []) == PEERS[0]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "has 0 letters"),
        ("alice", "has 5 letters"),
        (COMMON, "give more letters"),
        (COMMON + "zzzz", "no peer's id begins with 12D3KooWzzzz"),
        (peer_name(PEERS[0]) + "x", "has 53 letters"),
    ],
)
def test_what_names_no_peer_or_several_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        find_peer(text, PEERS)
