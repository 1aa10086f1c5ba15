"""Opening a base file: memory-mapped, and checked before use."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.errors import ConfigError, StorageError
from sterna.train.architecture import Architecture
from sterna.train.base_layout import (
    ALIGNMENT,
    MAX_HEADER_BYTES,
    ONE_SCALE_VERSION,
    PLANES_VERSION,
    LinearFacts,
    Plane,
    TensorFacts,
    check_texts,
    linear_facts,
    plane_name,
    scale_shape,
    taken,
    tensors_of,
)
from sterna_kernels import TernaryMatrix
from sterna_protocol.wire.chunks import file_digest

__all__ = ["Architecture", "Base", "Rows", "builtin_bases", "open_base"]

Rows = tuple[NDArray[np.int8], NDArray[np.float32]]


class Base:
    """An open base file. Arrays are read-only views of the mapping and keep it alive.

    Made by ``open_base``.
    """

    __slots__ = ("_data", "_digest", "_linears", "_spans", "architecture", "name", "path", "provenance")

    def __init__(
        self,
        *,
        path: Path,
        data: NDArray[np.uint8],
        spans: Mapping[str, tuple[int, int]],
        linears: Mapping[str, LinearFacts],
        architecture: Architecture,
        name: str,
        provenance: str,
        digest: bytes | None,
    ) -> None:
        self.path = path
        self.architecture = architecture
        self.name = name
        self.provenance = provenance
        self._data = data
        self._spans = spans
        self._linears = linears
        self._digest = digest

    @property
    def digest(self) -> bytes:
        """The blob digest of the file, 32 bytes; reads the whole file the first time unless passed in."""
        if self._digest is None:
            self._digest = file_digest(self._read, self._data.size)
        return self._digest

    @property
    def tokenizer_json(self) -> bytes:
        """A Hugging Face ``tokenizers`` file."""
        return self._bytes("tokenizer.json").tobytes().rstrip(b" ")

    def planes(self, name: str) -> tuple[TernaryMatrix, ...]:
        """One linear's weights, viewing the mapped file: the matrices whose sum they are, most often one.

        Raises:
            KeyError: the base has no such linear.
        """
        facts = self._linears[name]
        return tuple(
            self._plane(plane_name(name, number), facts.shape, plane)
            for number, plane in enumerate(facts.planes)
        )

    def vector(self, name: str) -> NDArray[np.float32]:
        """One norm's weights, float32, viewing the mapped file.

        Raises:
            KeyError: the base has no such norm.
        """
        if name not in dict(self.architecture.vectors()):
            raise KeyError(name)
        return self._bytes(name).view("<f4")

    @property
    def embedding(self) -> Rows:
        """int8 codes [V, D] and float32 scales [V]; row t is codes[t] * scales[t]."""
        return self._rows("embedding")

    @property
    def head(self) -> Rows:
        """The output head's rows, as ``embedding``; the embedding itself when tied."""
        return self._rows("embedding" if self.architecture.tied_embeddings else "head")

    def _rows(self, name: str) -> Rows:
        codes = self._bytes(f"{name}.codes").view(np.int8)
        shape = (self.architecture.vocab_size, self.architecture.hidden_size)
        return codes.reshape(shape), self._bytes(f"{name}.scale").view("<f4")

    def _plane(self, name: str, shape: tuple[int, int], plane: Plane) -> TernaryMatrix:
        packed = self._bytes(f"{name}.codes")
        form = scale_shape(shape, plane)
        if form is None:
            return TernaryMatrix.from_packed(packed, shape, plane.scale)
        scales = self._bytes(f"{name}.scale").view("<f4").reshape(form)
        if len(form) == 1:
            return TernaryMatrix.from_packed(packed, shape, plane.scale, row_scales=scales)
        return TernaryMatrix.from_packed(
            packed, shape, plane.scale, group_scales=scales, group_size=plane.columns
        )

    def _bytes(self, name: str) -> NDArray[np.uint8]:
        start, end = self._spans[name]
        return self._data[start:end]

    def _read(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size].tobytes()


def open_base(path: Path, *, digest: bytes | None = None) -> Base:
    """Map a base file and check its header; weights are not read.

    Args:
        digest: the file's blob digest, if the caller has verified it already.

    Raises:
        ConfigError: it is not a base file, or a part of it has the wrong type, size or place.
        StorageError: the file cannot be read.
    """
    try:
        size = path.stat().st_size
        if size < 8:
            raise ConfigError(f"{path}: {size} bytes are not a base file; get the file again")
        data: NDArray[np.uint8] = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        return _checked(path, data, digest)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}; this is not a whole base file, get it again") from None


def _checked(path: Path, data: NDArray[np.uint8], digest: bytes | None) -> Base:
    header, data_start = _header(data)
    metadata = _json_object(taken(taken(header, "__metadata__", dict, "header"), "sterna", str, "metadata"))
    version = taken(metadata, "version", int, "metadata")
    if version not in (ONE_SCALE_VERSION, PLANES_VERSION):
        raise ConfigError(
            f"base format version {version}, this release reads {ONE_SCALE_VERSION} and {PLANES_VERSION}"
        )
    architecture = _architecture(taken(metadata, "architecture", dict, "metadata"))
    linears = linear_facts(architecture, taken(metadata, "matrices", dict, "metadata"), version)
    spans = {
        tensor.name: _span(tensor, taken(header, tensor.name, dict, "header"), data_start, data.size)
        for tensor in tensors_of(architecture, linears)
    }
    name = taken(metadata, "name", str, "metadata")
    provenance = taken(metadata, "provenance", str, "metadata")
    check_texts(name, provenance)
    _check_scales(linears, data, spans)
    return Base(
        path=path,
        data=data,
        spans=spans,
        linears=linears,
        architecture=architecture,
        name=name,
        provenance=provenance,
        digest=digest,
    )


def _span(tensor: TensorFacts, entry: dict[str, Any], data_start: int, size: int) -> tuple[int, int]:
    """Where the tensor lies in the file."""
    name, dtype = tensor.name, tensor.dtype
    shape = None if tensor.shape is None else list(tensor.shape)
    if entry.get("dtype") != dtype or (shape is not None and entry.get("shape") != shape):
        raise ConfigError(
            f"tensor {name} is {entry.get('dtype')} {entry.get('shape')}, expected {dtype} {shape}"
        )
    offsets = entry.get("data_offsets")
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(n) is int for n in offsets)):
        raise ConfigError(f"tensor {name} has the offsets {offsets!r}")
    start, end = data_start + offsets[0], data_start + offsets[1]
    if not data_start <= start <= end <= size:
        raise ConfigError(f"tensor {name} lies at {start}..{end}, outside the file of {size} bytes")
    if shape is not None and end - start != math.prod(shape) * tensor.item_bytes:
        raise ConfigError(f"tensor {name} has {end - start} bytes, {shape} of {dtype} need another number")
    if start % ALIGNMENT:
        raise ConfigError(f"tensor {name} starts at {start}, not at a multiple of {ALIGNMENT}")
    return start, end


def _check_scales(
    linears: Mapping[str, LinearFacts], data: NDArray[np.uint8], spans: Mapping[str, tuple[int, int]]
) -> None:
    # Of the weights' pages only these are read: one bad scale would make NaN of every text, and a base with
    # a scale a matrix has none.
    for name, facts in linears.items():
        for number, plane in enumerate(facts.planes):
            if plane.columns is None:
                continue
            tensor = f"{plane_name(name, number)}.scale"
            start, end = spans[tensor]
            if not np.isfinite(data[start:end].view("<f4")).all():
                raise ConfigError(f"tensor {tensor} holds a scale that is not a finite number")


def _header(data: NDArray[np.uint8]) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(data[:8].tobytes(), "little")
    if length > MAX_HEADER_BYTES:
        raise ConfigError(f"the header claims {length} bytes, the limit is {MAX_HEADER_BYTES}")
    if 8 + length > data.size:
        raise ConfigError(f"the header claims {length} bytes, the file has {data.size}")
    try:
        text = data[8 : 8 + length].tobytes().decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"the header is not UTF-8 at byte {error.start}") from error
    return _json_object(text), 8 + length


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError as error:
        raise ConfigError("the header is nested too deeply") from error
    except ValueError as error:
        raise ConfigError(f"the header is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"the header is a JSON {type(value).__name__}, not an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ConfigError("the header names something twice")
    return found


def _no_constant(name: str) -> float:
    raise ConfigError(f"the header holds {name}")


def _architecture(facts: dict[str, Any]) -> Architecture:
    names = {field.name for field in fields(Architecture)}
    if set(facts) != names:
        raise ConfigError(f"architecture: missing or unknown {', '.join(sorted(names ^ set(facts)))}"[:200])
    return Architecture(**facts)


def builtin_bases() -> dict[str, Path]:
    """The bases that come with Sterna, by name."""
    folder = Path(str(resources.files("sterna"))) / "data"
    return {path.stem: path for path in sorted(folder.glob("*.sterna"))}
