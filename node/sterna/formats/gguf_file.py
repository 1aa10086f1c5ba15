"""GGUF files, as ggml/docs/gguf.md defines them: named values, then named tensors, nothing held twice.

GGUF 3, all little-endian, strings as u64 length and bytes::

    "GGUF" | version u32 = 3 | tensors u64 | keys u64
    keys     name string | type u32 | value; a list is element type u32 | length u64 | elements
    tensors  name string | dimensions u32 | u64 each, fastest first | type u32 | offset u64
    padding to 32 bytes, then each tensor's data, padded to 32 bytes
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from sterna.errors import ConfigError
from sterna_kernels import TernaryMatrix

Value = str | bool | int | float | list[str] | list[int]

TERNARY_BLOCK = 256
"""Weights that share a scale in TQ2_0; a row is a whole number of such blocks."""

_VERSION = 3
_ALIGNMENT = 32
_LIST = 9


class TensorType(Enum):
    """How numbers are held: ggml's number of the type, and (elements, bytes) of a block."""

    F32 = 0, 1, 4
    F16 = 1, 1, 2
    TQ2_0 = 35, TERNARY_BLOCK, 66


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor whose bytes are made, piece by piece, when its turn comes.

    Attributes:
        shape: slowest first, as in NumPy.
    """

    type: TensorType
    shape: tuple[int, ...]
    make: Callable[[], Iterable[bytes]]

    @classmethod
    def of(cls, array: NDArray[np.float32]) -> Tensor:
        """Numbers as they are."""
        return cls(TensorType.F32, array.shape, lambda: (array.astype("<f4", copy=False).tobytes(),))

    @property
    def nbytes(self) -> int:
        """How much ``make`` will give."""
        _, elements, size = self.type.value
        return math.prod(self.shape) // elements * size


def gguf_pieces(keys: Mapping[str, Value], tensors: Mapping[str, Tensor]) -> Iterator[bytes]:
    """The file: its head first and then piece by piece; the same bytes for the same parts."""
    head = [b"GGUF", struct.pack("<IQQ", _VERSION, len(tensors), len(keys))]
    for key, value in keys.items():
        kind, data = _value(value)
        head += [_string(key), struct.pack("<I", kind), data]
    offset = 0
    for name, tensor in tensors.items():
        sizes = tensor.shape[::-1]
        head += [_string(name), struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)]
        head.append(struct.pack("<IQ", tensor.type.value[0], offset))
        offset += tensor.nbytes + _gap(tensor.nbytes)
    size = sum(len(piece) for piece in head)
    yield b"".join(head) + bytes(_gap(size))
    for tensor in tensors.values():
        yield from tensor.make()
        yield bytes(_gap(tensor.nbytes))


def halves(weights: NDArray[np.float32], name: str) -> bytes:
    """Numbers as F16, each rounded to 11 bits.

    Raises:
        ConfigError: one is too large for that.
    """
    with np.errstate(over="ignore"):
        rounded = weights.astype("<f2")
    if not np.isfinite(rounded).all():
        raise ConfigError(f"{name} holds a number that is too large for F16; this base cannot be exported")
    return rounded.tobytes()


def ternary_blocks(codes: NDArray[np.int8], scales: NDArray[np.float32], name: str) -> bytes:
    """Codes [out, in] as TQ2_0, with ``scales`` [out, in / 256] rounded to F16.

    A block is two halves of 32 bytes, and its scale: bits 2n and 2n+1 of byte m hold code + 1 of the half's
    weight 32 n + m.
    """
    quarters = (codes + np.int8(1)).view(np.uint8).reshape(-1, 2, 4, 32)
    whole = quarters[:, :, 0].copy()
    for place in range(1, 4):
        whole |= quarters[:, :, place] << np.uint8(2 * place)
    ends = np.frombuffer(halves(scales, name), np.uint8).reshape(-1, 2)
    return np.concatenate([whole.reshape(-1, 64), ends], axis=1).tobytes()


def block_scales(matrix: TernaryMatrix) -> NDArray[np.float32] | None:
    """What each block of 256 columns is multiplied by, [out, in / 256]; None if blocks have no scale each."""
    out, in_ = matrix.shape
    if in_ % TERNARY_BLOCK:
        return None
    scales = np.full((out, in_ // TERNARY_BLOCK), matrix.scale, np.float32)
    if matrix.row_scales is not None:
        scales *= matrix.row_scales[:, None]
    if matrix.group_scales is not None and matrix.group_size is not None:
        if matrix.group_size % TERNARY_BLOCK:
            return None
        scales *= np.repeat(matrix.group_scales, matrix.group_size // TERNARY_BLOCK, axis=1)
    return scales


def _value(value: Value) -> tuple[int, bytes]:
    """The number of a value's type, and its bytes."""
    match value:
        case bool():
            return 7, struct.pack("<?", value)
        case int():
            return 4, struct.pack("<I", value)
        case float():
            return 6, struct.pack("<f", value)
        case str():
            return 8, _string(value)
    return _LIST, _list(value)


def _list(values: Sequence[str | int]) -> bytes:
    kind = 5 if values and isinstance(values[0], int) else 8
    data = [_string(value) if isinstance(value, str) else struct.pack("<i", value) for value in values]
    return struct.pack("<IQ", kind, len(data)) + b"".join(data)


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _gap(size: int) -> int:
    """Bytes up to the next multiple of the alignment."""
    return -size % _ALIGNMENT
