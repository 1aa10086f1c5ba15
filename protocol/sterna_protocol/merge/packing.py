"""How the codes of a delta stand in bytes; one packing for each codec, each with one spelling for each value.

::

    int8     one i8 each
    int4     two a byte, two's complement, the first in the low half; an odd last half is 0
    ternary  five a byte: sum of (code_j + 1) * 3**j; codes past the end are 0
    top2     of each 1,024 codes, 32 are kept (of a shorter last block, one for each 32 begun), the others
             are 0. A kept one takes 12 bits: its index in the block * 4 + (0: -3, 1: -2, 2: 2, 3: 3). Indices
             ascend; the bits follow one another, each byte filled from its lowest; a last half byte is 0
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sterna_protocol.errors import LocalProtocolError, MalformedMessage

Codes = NDArray[np.int8]
Packed = NDArray[np.uint8]

TOP2_BLOCK: Final = 1024
"""Ten bits of index: a longer block would need more of them, a shorter one misses more of the largest."""

TOP2_KEPT_OF: Final = 32
"""One code in so many is kept: 3.1 % of them carry most of a delta with error feedback (arXiv:2508.15706)."""

_TOP2_LEVELS: Final = np.array([-3, -2, 2, 3], np.int8)


@dataclass(frozen=True, slots=True)
class Packing:
    """``size(n)``: bytes of n codes; ``pack(codes)``; ``unpack(packed, n)``.

    Raises:
        LocalProtocolError: ``pack``: the packing cannot hold these codes.
        MalformedMessage: ``unpack``: bytes that ``pack`` never makes.
    """

    size: Callable[[int], int]
    pack: Callable[[Codes], Packed]
    unpack: Callable[[Packed, int], Codes]


def top2_kept(block_length: int) -> int:
    """How many codes of a block of this length are kept."""
    return -(-block_length // TOP2_KEPT_OF)


def _pack_int8(codes: Codes) -> Packed:
    return codes.view(np.uint8)


def _unpack_int8(packed: Packed, size: int) -> Codes:
    codes = packed.view(np.int8)
    if codes.min() < -127:
        raise MalformedMessage(f"int8 code -128 at {int(codes.argmin())}")
    return codes


def _pack_int4(codes: Codes) -> Packed:
    halves = np.zeros(codes.size + codes.size % 2, np.uint8)
    halves[: codes.size] = codes.view(np.uint8) & 15
    packed: Packed = halves[0::2] | (halves[1::2] << np.uint8(4))
    return packed


def _unpack_int4(packed: Packed, size: int) -> Codes:
    halves = np.empty((packed.size, 2), np.uint8)
    halves[:, 0] = packed & 15
    halves[:, 1] = packed >> 4
    # 0..7 stay, 8..15 become -8..-1.
    codes = ((halves ^ 8).view(np.int8) - np.int8(8)).reshape(-1)
    if codes.min() < -7:
        raise MalformedMessage(f"int4 code -8 at {int(codes.argmin())}")
    if codes[size:].any():
        raise MalformedMessage("int4 padding is not zero")
    return codes[:size]


def _pack_ternary(codes: Codes) -> Packed:
    digits = np.ones((-(-codes.size // 5), 5), np.uint8)
    digits.reshape(-1)[: codes.size] = (codes + 1).view(np.uint8)
    packed = digits[:, 4].copy()
    for place in (3, 2, 1, 0):
        packed *= np.uint8(3)
        packed += digits[:, place]
    return packed


def _unpack_ternary(packed: Packed, size: int) -> Codes:
    if packed.max() >= 3**5:
        raise MalformedMessage(f"ternary byte {packed.max()} at {int(packed.argmax())}, the last is 242")
    codes = _trits_of_byte()[packed].reshape(-1)
    if codes[size:].any():
        raise MalformedMessage("ternary padding is not zero")
    return codes[:size]


@cache
def _trits_of_byte() -> Codes:
    byte = np.arange(3**5)[:, None]
    return (byte // 3 ** np.arange(5) % 3 - 1).astype(np.int8)


def _pack_top2(codes: Codes) -> Packed:
    places = np.flatnonzero(codes)
    if not np.array_equal(places // TOP2_BLOCK, _top2_blocks(codes.size)):
        raise LocalProtocolError(
            f"top2 delta with {places.size} codes that are not 0, expected {_top2_blocks(codes.size).size}: "
            f"one in {TOP2_KEPT_OF} of each block"
        )
    levels = np.searchsorted(_TOP2_LEVELS, codes[places])
    if not np.array_equal(_TOP2_LEVELS[levels], codes[places]):
        raise LocalProtocolError("top2 delta with a code that is not 0, 2, 3, -2 or -3")
    words = np.zeros(places.size + places.size % 2, np.uint16)
    words[: places.size] = (places % TOP2_BLOCK) << 2 | levels
    packed = np.empty((words.size // 2, 3), np.uint8)
    packed[:, 0] = words[0::2] & 255
    packed[:, 1] = words[0::2] >> 8 | (words[1::2] & 15) << 4
    packed[:, 2] = words[1::2] >> 4
    return packed.reshape(-1)[: _top2_bytes(codes.size)]


def _unpack_top2(packed: Packed, size: int) -> Codes:
    triples = np.zeros((-(-packed.size // 3), 3), np.uint16)
    triples.reshape(-1)[: packed.size] = packed
    words = np.empty((len(triples), 2), np.uint16)
    words[:, 0] = triples[:, 0] | (triples[:, 1] & 15) << 8
    words[:, 1] = triples[:, 1] >> 4 | triples[:, 2] << 4
    blocks = _top2_blocks(size)
    if words.reshape(-1)[blocks.size :].any():
        raise MalformedMessage("top2 padding is not zero")
    kept = words.reshape(-1)[: blocks.size]
    places = blocks * TOP2_BLOCK + (kept >> 2)
    if places[-1] >= size:
        raise MalformedMessage(f"top2 index {int(places[-1])} of {size}")
    # Blocks ascend by themselves, so that ascending places are ascending indices within each.
    if (np.diff(places) <= 0).any():
        raise MalformedMessage(f"top2 indices do not ascend after {int(np.argmax(np.diff(places) <= 0))}")
    codes = np.zeros(size, np.int8)
    codes[places] = _TOP2_LEVELS[kept & 3]
    return codes


def _top2_blocks(size: int) -> NDArray[np.int64]:
    """The block of each kept code."""
    whole, rest = divmod(size, TOP2_BLOCK)
    kept = np.full(whole + (rest > 0), top2_kept(TOP2_BLOCK))
    if rest:
        kept[-1] = top2_kept(rest)
    return np.repeat(np.arange(kept.size), kept)


def _top2_bytes(size: int) -> int:
    whole, rest = divmod(size, TOP2_BLOCK)
    return -(-(whole * top2_kept(TOP2_BLOCK) + top2_kept(rest)) * 12 // 8)


PACKINGS: Final[dict[str, Packing]] = {
    "int8": Packing(lambda size: size, _pack_int8, _unpack_int8),
    "int4": Packing(lambda size: -(-size // 2), _pack_int4, _unpack_int4),
    "ternary": Packing(lambda size: -(-size // 5), _pack_ternary, _unpack_ternary),
    "top2": Packing(_top2_bytes, _pack_top2, _unpack_top2),
}
