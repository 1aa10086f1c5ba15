"""Charters for tests: small ones that differ from the default only in what a test says."""

from __future__ import annotations

from typing import Any

from sterna_protocol.swarm.charter import Charter
from sterna_protocol.swarm.defaults import default_charter
from sterna_protocol.wire.signing import SigningKey

TINY = (("q", 6, 4), ("down", 4, 10))
"""Two linears whose deltas have 10 elements (B only) for each unit of rank and layer."""


def key(number: int) -> SigningKey:
    """The ``number``-th test key."""
    return SigningKey.from_seed(number.to_bytes(32, "big"))


def small_charter(**changes: Any) -> Charter:
    """A charter over two tiny layers that trusts whoever comes and takes the mean, with ``changes`` to its
    arguments."""
    arguments: dict[str, Any] = {
        "name": "test",
        "nonce": bytes(range(16)),
        "founders": (key(1).peer,),
        "base_name": "tiny",
        "base": b"b" * 32,
        "tokenizer": b"t" * 32,
        "layers": 2,
        "linears": TINY,
        "seed": b"s" * 32,
        "rank": 2,
        "rule": "mean",
        "trim_percent": 20,
        "admission": "open",
        "aged_rounds": 0,
    }
    return default_charter(**(arguments | changes))
