"""The delta on the wire: small integers and a power-of-two exponent for each block of them.

A delta blob, whose size follows from the charter to the byte::

    "STRD" | version u8 = 1 | codec u8 | 0 u16 | swarm 32 | round u32 | author 32      76 bytes, big-endian
    exponents    one i8 for each block of codes
    codes        packed as the codec says (_PACK)

Element i has the value ``codes[i] * 2**exponents[i // block]``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from sterna_protocol.errors import LocalProtocolError, MalformedMessage
from sterna_protocol.merge.scheme import delta_size
from sterna_protocol.swarm.charter import Charter

Codec = Literal["int8", "int4", "ternary"]

MIN_EXPONENT: Final = -24
"""The unit of the adapter's state; finer steps would be lost in the merge."""

MAX_EXPONENT: Final = 0
"""A ternary code then moves a parameter by at most 1 in a round, an int8 code by 127, and a code that is
shifted to the unit of the state stays within 127 * 2**24 < 2**31."""

HEADER_BYTES: Final = 76
_MAGIC: Final = b"STRD"
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class _Format:
    """``limit``: largest magnitude of a code. ``block``: codes that share an exponent.
    ``tries``: exponents below the largest sensible one that can be better (see ``quantise``)."""

    number: int
    limit: int
    block: int
    tries: int


# A ternary block is longer than the others because its exponents weigh more: one byte for each 256 codes is
# 2 % of the blob, for each 1,024 it is 0.5 %.
_FORMATS: Final[dict[str, _Format]] = {
    "int8": _Format(number=1, limit=127, block=256, tries=3),
    "int4": _Format(number=2, limit=7, block=256, tries=4),
    "ternary": _Format(number=3, limit=1, block=1024, tries=7),
}

_SLICE_BLOCKS: Final = 256
"""Blocks that are quantised at once: 2 MiB of float64 at the longest block, about one L2 cache."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What one peer changed in one round.

    Shapes: ``codes`` int8 [n], ``exponents`` int8 [ceil(n / block_elements(codec))].
    """

    codes: NDArray[np.int8]
    exponents: NDArray[np.int8]
    codec: Codec


def block_elements(codec: Codec) -> int:
    """How many consecutive codes share an exponent."""
    return _FORMATS[codec].block


def quantise(values: NDArray[np.float32], codec: Codec) -> Delta:
    """The delta nearest to ``values`` (float [n]).

    Each code is rounded to nearest, ties to even; each block gets the exponent with the least squared error,
    the larger one of two that are equal.

    Only the sender quantises, so that floats are allowed here: receivers never repeat it.

    Raises:
        LocalProtocolError: a value is NaN or infinite, or ``values`` is not one-dimensional.
    """
    if values.ndim != 1:
        raise LocalProtocolError(f"quantise takes a vector, got the shape {values.shape}")
    layout = _FORMATS[codec]
    codes = np.empty(values.size, np.int8)
    exponents = np.empty(-(-values.size // layout.block), np.int8)
    step = _SLICE_BLOCKS * layout.block
    for start in range(0, values.size, step):
        part = values[start : start + step]
        if not np.isfinite(part).all():
            where = start + int(np.flatnonzero(~np.isfinite(part))[0])
            raise LocalProtocolError(f"delta value {where} is {values[where]}; the training diverged")
        blocks = np.zeros((-(-part.size // layout.block), layout.block))
        blocks.reshape(-1)[: part.size] = part
        block_codes, block_exponents = _quantise_blocks(blocks, layout)
        codes[start : start + step] = block_codes.reshape(-1)[: part.size]
        exponents[start // layout.block :][: len(blocks)] = block_exponents
    return Delta(codes, exponents, codec)


def dequantise(delta: Delta) -> NDArray[np.float32]:
    """The values of ``delta``: float32 [n], exact."""
    block = block_elements(delta.codec)
    steps = np.ldexp(np.float32(1), delta.exponents.astype(np.int32)).astype(np.float32)
    values = np.repeat(steps, block)[: delta.codes.size]
    values *= delta.codes
    return values


def delta_blob_bytes(charter: Charter) -> int:
    """The size of each delta blob of this swarm, in bytes."""
    size = delta_size(charter.adapter)
    return HEADER_BYTES + _exponent_count(charter.codec, size) + _packed_bytes(charter.codec, size)


def encode_delta(charter: Charter, *, author: bytes, round_: int, delta: Delta) -> bytes:
    """The blob of ``delta``, trained by ``author`` in ``round_``.

    Raises:
        LocalProtocolError: the delta does not fit the charter.
    """
    require_fits(charter, delta)
    return b"".join(
        (
            _header(charter, author, round_),
            delta.exponents.tobytes(),
            _PACK[charter.codec](delta.codes).tobytes(),
        )
    )


def decode_delta(charter: Charter, *, author: bytes, round_: int, data: bytes | memoryview) -> Delta:
    """The delta in ``data``, which ``author`` must have trained in ``round_`` of this swarm.

    Raises:
        MalformedMessage: wrong size, another header, or a code or exponent out of range.
    """
    # [REJECT] The size is the one that the charter gives (checked before anything is allocated)
    if len(data) != delta_blob_bytes(charter):
        raise MalformedMessage(f"delta of {len(data)} bytes, expected {delta_blob_bytes(charter)}")
    # [REJECT] The header names this swarm, codec, round and author: a delta is nobody else's
    header, expected = bytes(data[:HEADER_BYTES]), _header(charter, author, round_)
    if header != expected:
        raise MalformedMessage(f"delta header {header.hex()}, expected {expected.hex()}")
    size = delta_size(charter.adapter)
    count = _exponent_count(charter.codec, size)
    exponents = np.frombuffer(data, np.int8, count=count, offset=HEADER_BYTES)
    # [REJECT] Each exponent is in range
    if exponents.min() < MIN_EXPONENT or exponents.max() > MAX_EXPONENT:
        raise MalformedMessage(
            f"delta exponents {exponents.min()}..{exponents.max()}, "
            f"allowed are {MIN_EXPONENT}..{MAX_EXPONENT}"
        )
    packed = np.frombuffer(data, np.uint8, offset=HEADER_BYTES + count)
    # [REJECT] Each code is in range and the padding is zero
    codes = _UNPACK[charter.codec](packed, size)
    return Delta(codes, exponents, charter.codec)


def require_fits(charter: Charter, delta: Delta) -> None:
    """Return if ``delta`` has the codec, the size and the ranges of this charter.

    Raises:
        LocalProtocolError: it has not.
    """
    layout = _FORMATS[charter.codec]
    size = delta_size(charter.adapter)
    if delta.codec != charter.codec:
        raise LocalProtocolError(f"delta of codec {delta.codec}, the charter has {charter.codec}")
    for name, array, count, low, high in (
        ("codes", delta.codes, size, -layout.limit, layout.limit),
        ("exponents", delta.exponents, _exponent_count(charter.codec, size), MIN_EXPONENT, MAX_EXPONENT),
    ):
        if array.dtype != np.int8 or array.shape != (count,):
            raise LocalProtocolError(
                f"delta {name} are {array.dtype} {array.shape}, expected int8 ({count},)"
            )
        if array.min() < low or array.max() > high:
            raise LocalProtocolError(
                f"delta {name} are {array.min()}..{array.max()}, allowed are {low}..{high}"
            )


def _header(charter: Charter, author: bytes, round_: int) -> bytes:
    return b"".join(
        (
            _MAGIC,
            bytes((_VERSION, _FORMATS[charter.codec].number, 0, 0)),
            charter.swarm_id,
            round_.to_bytes(4, "big"),
            author,
        )
    )


def _exponent_count(codec: Codec, size: int) -> int:
    return -(-size // _FORMATS[codec].block)


def _packed_bytes(codec: Codec, size: int) -> int:
    return {"int8": size, "int4": -(-size // 2), "ternary": -(-size // 5)}[codec]


def _quantise_blocks(
    blocks: NDArray[np.float64], layout: _Format
) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    # With 2**(k-1) <= largest value < 2**k, the exponent k - (bits of the limit - 1) clips at most half a
    # step. Smaller ones clip the largest value for the sake of the others; each costs at least the square
    # of what it cuts off, so that only ``tries`` of them can win over a block of this length.
    _, largest = np.frexp(np.abs(blocks).max(axis=1))
    top = largest - (layout.limit.bit_length() - 1)
    best_error = np.full(len(blocks), np.inf)
    best_codes = np.zeros(blocks.shape)
    best_exponents = np.full(len(blocks), MIN_EXPONENT)
    for lower in range(layout.tries):
        exponents = np.clip(top - lower, MIN_EXPONENT, MAX_EXPONENT)
        steps = np.ldexp(1.0, exponents)[:, None]
        codes = np.clip(np.rint(blocks / steps), -layout.limit, layout.limit)
        error = np.square(blocks - codes * steps).sum(axis=1)
        better = error < best_error
        best_error[better] = error[better]
        best_codes[better] = codes[better]
        best_exponents[better] = exponents[better]
    best_exponents[~best_codes.any(axis=1)] = MIN_EXPONENT
    return best_codes.astype(np.int8), best_exponents.astype(np.int8)


def _pack_int8(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    return codes.view(np.uint8)


def _unpack_int8(packed: NDArray[np.uint8], size: int) -> NDArray[np.int8]:
    codes = packed.view(np.int8)
    if codes.min() < -127:
        raise MalformedMessage(f"int8 code -128 at {int(codes.argmin())}")
    return codes


# int4: two codes a byte, two's complement, the first in the low half; an odd last half is 0.
def _pack_int4(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    halves = np.zeros(codes.size + codes.size % 2, np.uint8)
    halves[: codes.size] = codes.view(np.uint8) & 15
    packed: NDArray[np.uint8] = halves[0::2] | (halves[1::2] << np.uint8(4))
    return packed


def _unpack_int4(packed: NDArray[np.uint8], size: int) -> NDArray[np.int8]:
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


# ternary: five codes a byte, the byte is the sum of (code_j + 1) * 3**j; codes past the end are 0.
def _pack_ternary(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    digits = np.ones((-(-codes.size // 5), 5), np.uint8)
    digits.reshape(-1)[: codes.size] = (codes + 1).view(np.uint8)
    packed = digits[:, 4].copy()
    for place in (3, 2, 1, 0):
        packed *= np.uint8(3)
        packed += digits[:, place]
    return packed


def _unpack_ternary(packed: NDArray[np.uint8], size: int) -> NDArray[np.int8]:
    if packed.max() >= 3**5:
        raise MalformedMessage(f"ternary byte {packed.max()} at {int(packed.argmax())}, the last is 242")
    codes = _trits_of_byte()[packed].reshape(-1)
    if codes[size:].any():
        raise MalformedMessage("ternary padding is not zero")
    return codes[:size]


@cache
def _trits_of_byte() -> NDArray[np.int8]:
    byte = np.arange(3**5)[:, None]
    return (byte // 3 ** np.arange(5) % 3 - 1).astype(np.int8)


_PACK: Final[dict[str, Callable[[NDArray[np.int8]], NDArray[np.uint8]]]] = {
    "int8": _pack_int8,
    "int4": _pack_int4,
    "ternary": _pack_ternary,
}
_UNPACK: Final[dict[str, Callable[[NDArray[np.uint8], int], NDArray[np.int8]]]] = {
    "int8": _unpack_int8,
    "int4": _unpack_int4,
    "ternary": _unpack_ternary,
}
