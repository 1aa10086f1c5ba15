"""Peers by the first letters of their ids: as few as tell them apart."""

from __future__ import annotations

from collections.abc import Iterable

from sterna.errors import ConfigError
from sterna_protocol.errors import MalformedMessage
from sterna_protocol.wire.ids import parse_peer_name, peer_name

COMMON = "12D3KooW"
"""How every id of an Ed25519 key begins."""

FEWEST_LETTERS = len(COMMON) + 4
"""Of a short id: of thirty peers, two share these once in some 26,000 swarms."""


def shortened(names: Iterable[str]) -> dict[str, str]:
    """The first letters of each of ``names``, as many for all as tell any two of them apart."""
    known = set(names)
    longest = max(map(len, known), default=0)
    letters = next(
        (
            some
            for some in range(FEWEST_LETTERS, longest)
            if len({name[:some] for name in known}) == len(known)
        ),
        longest,
    )
    return {name: name[:letters] for name in known}


def require_beginning(text: str) -> None:
    """Return if ``text`` is the id of a peer, or can be the beginning of one.

    Raises:
        ConfigError: it is neither.
    """
    if _is_beginning(text):
        return
    try:
        parse_peer_name(text)
    except MalformedMessage as error:
        raise ConfigError(f"{error}; `sterna peers` lists them") from error


def find_peer(text: str, known: Iterable[bytes]) -> bytes:
    """The peer whose id is ``text``, or the only one of ``known`` whose id begins with it.

    Raises:
        ConfigError: no id, or the beginning of none or of several.
    """
    require_beginning(text)
    if not _is_beginning(text):
        return parse_peer_name(text)
    found = sorted(peer for peer in known if peer_name(peer).startswith(text))
    if not found:
        raise ConfigError(f"no peer's id begins with {text}; `sterna peers` lists them")
    if len(found) > 1:
        raise ConfigError(f"{text} may be {' or '.join(map(peer_name, found))}: give more letters")
    return found[0]


def _is_beginning(text: str) -> bool:
    return text.startswith(COMMON) and len(text) < len(peer_name(bytes(32)))
