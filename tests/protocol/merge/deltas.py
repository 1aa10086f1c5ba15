"""Deltas and slates made from a seed."""

from __future__ import annotations

import numpy as np

from sterna_protocol.merge.codec import MAX_EXPONENT, MIN_EXPONENT, Codec, Delta, block_elements
from sterna_protocol.merge.scheme import delta_size
from sterna_protocol.swarm.charter import Charter
from sterna_protocol.wire.messages import SlateEntry

LIMITS: dict[str, int] = {"int8": 127, "int4": 7, "ternary": 1, "top2": 3}


def random_delta(
    charter: Charter, rng: np.random.Generator, low: int = MIN_EXPONENT, high: int = MAX_EXPONENT
) -> Delta:
    """Any codes, and exponents in [low, high]."""
    codec: Codec = charter.codec
    limit, size = LIMITS[codec], delta_size(charter.adapter)
    codes = rng.integers(-limit, limit, size, dtype=np.int8, endpoint=True)
    block = block_elements(codec)
    blocks = -(-size // block)
    if codec == "top2":
        codes[:] = 0
        for start in range(0, size, block):
            length = min(block, size - start)
            kept = start + rng.choice(length, -(-length // 32), replace=False)
            codes[kept] = rng.choice([-3, -2, 2, 3], kept.size)
    return Delta(codes, rng.integers(low, high, blocks, dtype=np.int8, endpoint=True), codec)


def entry(author: int, trained_round: int) -> SlateEntry:
    return SlateEntry(
        author=author.to_bytes(32, "big"),
        announcement=author.to_bytes(32, "big"),
        delta=author.to_bytes(32, "big"),
        trained_round=trained_round,
    )


def random_slate(
    charter: Charter, rng: np.random.Generator, count: int, *, round_: int, late: bool = True
) -> list[tuple[SlateEntry, Delta]]:
    """``count`` deltas; every third or so is late where ``late``, which ``round_`` must allow for."""
    staleness = rng.choice([0, 0, 0, 1, 2], count) if late else np.zeros(count, int)
    return [
        (entry(author, round_ - int(late_by)), random_delta(charter, rng))
        for author, late_by in enumerate(staleness)
    ]
