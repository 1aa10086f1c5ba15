"""The delta on the wire: small integers and a power-of-two exponent for each block of them.

A delta blob, whose size follows from the charter to the byte::

    "STRD" | version u8 = 1 | codec u8 | 0 u16 | swarm 32 | round u32 | author 32      76 bytes, big-endian
    exponents    one i8 for each block of codes
    codes        packed as the codec says (packing.py)

Element i has the value ``codes[i] * 2**exponents[i // block]``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from sterna_protocol.errors import LocalProtocolError, MalformedMessage
from sterna_protocol.merge.packing import PACKINGS, TOP2_BLOCK, top2_kept
from sterna_protocol.merge.scheme import delta_size
from sterna_protocol.swarm.charter import Charter

Codec = Literal["int8", "int4", "ternary", "top2"]

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
    "top2": _Format(number=4, limit=3, block=TOP2_BLOCK, tries=5),
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
    the larger one of two that are equal. ``top2`` keeps the largest magnitudes of each block.

    Only the sender quantises, so that floats are allowed here: receivers never repeat it.

    Raises:
        LocalProtocolError: a value is NaN or infinite, or ``values`` is not one-dimensional.
    """
    if values.ndim != 1:
        raise LocalProtocolError(f"quantise takes a vector, got the shape {values.shape}")
    layout = _FORMATS[codec]
    codes = np.empty(values.size, np.int8)
    exponents = np.empty(-(-values.size // layout.block), np.int8)
    whole = values.size - values.size % layout.block
    starts = [*range(0, whole, _SLICE_BLOCKS * layout.block), whole, values.size]
    for start, stop in pairwise(starts):
        if start == stop:
            continue
        part = values[start:stop]
        if not np.isfinite(part).all():
            where = start + int(np.flatnonzero(~np.isfinite(part))[0])
            raise LocalProtocolError(f"delta value {where} is {values[where]}; the training diverged")
        blocks = part.astype(np.float64).reshape(-1, min(layout.block, stop - start))
        search = _sparse_blocks if codec == "top2" else _dense_blocks
        block_codes, block_exponents = search(blocks, layout)
        codes[start:stop] = block_codes.reshape(-1)
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
    return HEADER_BYTES + _exponent_count(charter.codec, size) + PACKINGS[charter.codec].size(size)


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
            PACKINGS[charter.codec].pack(delta.codes).tobytes(),
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
    codes = PACKINGS[charter.codec].unpack(packed, size)
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


def _dense_blocks(blocks: NDArray[np.float64], layout: _Format) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    # With 2**(k-1) <= largest value < 2**k, the exponent k - (bits of the limit - 1) clips at most half a
    # step. Smaller ones clip the largest value for the sake of the others; each costs at least the square
    # of what it cuts off, so that only ``tries`` of them can win over a block of this length.
    _, largest = np.frexp(np.abs(blocks).max(axis=1))
    first = largest - (layout.limit.bit_length() - 1)

    def codes_at(steps: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.clip(np.rint(blocks / steps), -layout.limit, layout.limit)

    codes, exponents = _least_error(blocks, first, layout.tries, codes_at)
    exponents[~codes.any(axis=1)] = MIN_EXPONENT
    return codes, exponents


def _sparse_blocks(blocks: NDArray[np.float64], layout: _Format) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    kept = top2_kept(blocks.shape[1])
    places = np.argpartition(-np.abs(blocks), kept - 1, axis=1)[:, :kept]
    values = np.take_along_axis(blocks, places, axis=1)
    # 2 and 3 steps stand for 1.5 to 3.5: with 2**(k-1) <= largest < 2**k, k - 1 is the first that can do.
    _, largest = np.frexp(np.abs(values).max(axis=1))

    def codes_at(steps: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(values < 0, -1.0, 1.0) * np.where(np.abs(values) < 2.5 * steps, 2, 3)

    codes, exponents = _least_error(values, largest - 1, layout.tries, codes_at)
    dense = np.zeros(blocks.shape, np.int8)
    np.put_along_axis(dense, places, codes, axis=1)
    return dense, exponents


def _least_error(
    values: NDArray[np.float64],
    first: NDArray[np.int32],
    tries: int,
    codes_at: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """The codes and exponents [rows] of least squared error, among ``tries`` exponents from ``first`` on."""
    error = np.full(len(values), np.inf)
    best = np.zeros(values.shape, np.int8)
    best_exponents = np.zeros(len(values), np.int8)
    for lower in range(tries):
        exponents = np.clip(first - lower, MIN_EXPONENT, MAX_EXPONENT)
        steps = np.ldexp(1.0, exponents)[:, None]
        codes = codes_at(steps)
        new_error = np.square(values - codes * steps).sum(axis=1)
        better = new_error < error
        error[better] = new_error[better]
        best[better] = codes[better]
        best_exponents[better] = exponents[better]
    return best, best_exponents
