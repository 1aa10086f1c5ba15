"""The safetensors format: bytes that are the same everywhere, and a gate for bytes from strangers.

::

    header length u64 little-endian | header JSON, padded with spaces to 8 bytes | data
    header  {"__metadata__": {str: str}, name: {"dtype", "shape", "data_offsets": [begin, end]}, ...}

The library takes seconds and hundreds of MiB for a header made to hurt (200,000 empty tensors), and does not
mind duplicate names or NaN; the gate refuses each of these, the cheapest check first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from sterna.errors import ConfigError

Tensors = dict[str, NDArray[Any]]

HEADER_BYTES_PER_TENSOR = 256
"""A header entry of an honest file: a name of 100 letters, dtype, shape and offsets, with room to spare."""

METADATA_BYTES = 64 * 1024
"""Room in the header for metadata; ours takes a few hundred bytes, other tools write a few thousand."""

_LENGTH_BYTES = 8
_MAX_SIZE = 2**48
_NAMES = {np.dtype("<f4"): "F32", np.dtype("<i4"): "I32", np.dtype("u1"): "U8"}
_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I32": "<i4", "U8": "u1"}


@dataclass(frozen=True, slots=True)
class Expected:
    """What one tensor must be. ``shape``: a None dimension may have any length."""

    dtypes: tuple[str, ...]
    shape: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor that is made when its turn comes, so that a file may be larger than memory.

    Attributes:
        make: gives arrays of float32, int32 or uint8 that follow each other and are together of this shape.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    make: Callable[[], Iterable[NDArray[Any]]]

    @classmethod
    def of(cls, array: NDArray[Any]) -> Planned:
        """One that is there already."""
        return cls(array.dtype, array.shape, lambda: (array,))


def encode_tensors(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """The file of ``tensors`` (float32, int32 or uint8); equal tensors give equal bytes on every machine."""
    planned = {name: Planned.of(array) for name, array in tensors.items()}
    return b"".join(tensor_pieces(planned, metadata))


def tensor_pieces(tensors: Mapping[str, Planned], metadata: Mapping[str, str]) -> Iterator[bytes]:
    """The same file, its head first and then piece by piece."""
    # Wider elements first keeps every tensor aligned; within that, by name.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name in order:
        planned = tensors[name]
        begin, end = end, end + math.prod(planned.shape) * planned.dtype.itemsize
        header[name] = {
            "dtype": _NAMES[planned.dtype.newbyteorder("<")],
            "shape": list(planned.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode("ascii")
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(_LENGTH_BYTES, "little") + text
    for name in order:
        for array in tensors[name].make():
            yield array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def decode_tensors(
    data: bytes, expected: Mapping[str, Expected], source: str
) -> tuple[Tensors, dict[str, str]]:
    """The tensors and the metadata of a file that anybody may have made.

    BF16 and F16 come back as float32, exactly. ``source`` names the file in errors.

    Raises:
        ConfigError: it is not a safetensors file with exactly the expected tensors, all of them finite.
    """
    try:
        return _decode(data, expected)
    except _Refused as reason:
        raise ConfigError(
            f"{source} is not the expected adapter file: {reason}; fetch or export it again"
        ) from reason


class _Refused(Exception):
    """Why a file is not taken."""


def _decode(data: bytes, expected: Mapping[str, Expected]) -> tuple[Tensors, dict[str, str]]:
    # [REJECT] The header is as short as the expected one
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    limit = METADATA_BYTES + HEADER_BYTES_PER_TENSOR * len(expected)
    if length > min(limit, len(data) - _LENGTH_BYTES):
        raise _Refused(f"a header of {length} bytes, at most {limit} in a file of {len(data)} are allowed")
    header = _parse(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
    metadata = header.pop("__metadata__", {})
    # [REJECT] The metadata is text
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _Refused("its metadata is not text")
    # [REJECT] The tensors are the expected ones
    if header.keys() != expected.keys():
        strange = min(header.keys() ^ expected.keys())
        raise _Refused(f"{'unknown' if strange in header else 'missing'} tensor {strange[:100]!r}")
    body = memoryview(data)[_LENGTH_BYTES + length :]
    layouts = {name: _layout(name, header[name], expected[name]) for name in expected}
    # [REJECT] The tensors fill the data without gap or overlap
    position = 0
    for name, layout in sorted(layouts.items(), key=lambda item: (item[1].begin, item[1].end)):
        if layout.begin != position:
            raise _Refused(f"tensor {name!r} begins at {layout.begin}, expected {position}")
        position = layout.end
    if position != len(body):
        raise _Refused(f"{len(body)} bytes of data, the tensors take {position}")
    return {name: _read(name, layout, body) for name, layout in layouts.items()}, metadata


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where one tensor lies in the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def _layout(name: str, entry: Any, expected: Expected) -> _Layout:
    # [REJECT] The entry has its three fields
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _Refused(f"tensor {name!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    # [REJECT] The numbers are sizes
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise _Refused(f"tensor {name!r} has sizes that are none")
    # [REJECT] Dtype and shape are the expected ones
    fits = len(shape) == len(expected.shape) and all(
        wanted in (None, found) for wanted, found in zip(expected.shape, shape, strict=True)
    )
    if dtype not in expected.dtypes or not fits:
        wanted = [size if size is not None else "any" for size in expected.shape]
        raise _Refused(
            f"tensor {name!r} is {str(dtype)[:20]} {shape[:8]}, expected {'/'.join(expected.dtypes)} {wanted}"
        )
    # [REJECT] The offsets span exactly the shape
    size = math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize
    if offsets[1] - offsets[0] != size:
        raise _Refused(f"tensor {name!r} spans {offsets}, its shape takes {size} bytes")
    return _Layout(dtype, tuple(shape), offsets[0], offsets[1])


def _are_sizes(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(n) is int and 0 <= n < _MAX_SIZE for n in numbers)


def _read(name: str, layout: _Layout, body: memoryview) -> NDArray[Any]:
    raw = np.frombuffer(body[layout.begin : layout.end], _DTYPES[layout.dtype]).reshape(layout.shape)
    if layout.dtype not in ("F32", "F16", "BF16"):
        return raw
    # bfloat16 is the upper half of a float32.
    wide = (raw.astype(np.uint32) << 16).view(np.float32) if layout.dtype == "BF16" else raw
    array = wide.astype(np.float32)
    # [REJECT] Every number is finite
    if not np.isfinite(array).all():
        raise _Refused(f"tensor {name!r} holds NaN or infinity")
    return array


def _parse(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _Refused(f"its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise _Refused("its header is not a table")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    # [REJECT] No name stands twice
    if len(table) != len(pairs):
        raise _Refused("a name stands twice in its header")
    return table


def _no_constant(name: str) -> NoReturn:
    raise _Refused(f"{name} in its header")
