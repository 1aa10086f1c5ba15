"""The layout of a base file: an ordinary safetensors file with these tensors, in this order.

Each starts at a multiple of 64 bytes (U8 tensors ``padding.<n>`` fill gaps that odd sizes leave):

    layers.<l>.<linear>.codes      U8   the kernels' packed bytes (sterna_kernels.layout)
    layers.<l>.<linear>.scale      F32 [out] or [out, groups], only of a plane with a scale a row or group
    layers.<l>.<linear>.<p>.codes, layers.<l>.<linear>.<p>.scale      the same of the planes p = 1, 2, ..
    layers.<l>.<norm>, final_norm  F32
    embedding.codes, embedding.scale   I8 [V, D], F32 [V]      row = codes * scale
    head.codes, head.scale         the same, only without tied embeddings
    tokenizer.json                 U8, padded with spaces

The metadata key ``sterna`` holds JSON: version, name, provenance, architecture, and matrices, which says for
each linear

    version 1   {"shape": [out, in], "scale": s}        one plane with one scale
    version 2   {"shape": [out, in], "planes": [{"scale": s}, ..]}
                {"shape": [out, in], "planes": [{"scale": s, "columns": c}, ..]}

A linear is the sum of its planes, and a plane is W[n, k] = s * scale[n, k // c] * codes[n, k]: c = in gives a
scale a row, and a smaller c, a multiple of 64 that divides in, one a row and group of c columns. What
version 1 can say is written as version 1, so that the same base has the same bytes from every release.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sterna.errors import ConfigError
from sterna.train.architecture import Architecture
from sterna_kernels import packed_nbytes
from sterna_kernels.layout import BLOCK_COLUMNS

# A 13B base has about 700 tensors of 100 bytes of header each, with two planes of groups 1,500; more than
# this is not a base.
MAX_HEADER_BYTES = 1 << 20
# Cache lines, and the widest vector registers, are 64 bytes.
ALIGNMENT = 64
ONE_SCALE_VERSION, PLANES_VERSION = 1, 2
# Five planes of 1.6 bits take a byte a weight, and a byte says more as an int8.
MAX_PLANES = 4
# Enough for a name on a command line and a page about its making.
MAX_NAME, MAX_PROVENANCE = 100, 10_000


@dataclass(frozen=True, slots=True)
class Plane:
    """How one plane of a linear is scaled.

    Attributes:
        scale: of all its weights, finite in float32.
        columns: how many columns share a further scale of their row: all of them, or a multiple of 64 that
            divides them; None without such scales.
    """

    scale: float
    columns: int | None = None


@dataclass(frozen=True, slots=True)
class LinearFacts:
    """What the header says of one linear. ``shape``: (out, in)."""

    shape: tuple[int, int]
    planes: tuple[Plane, ...]


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """What one tensor must be. ``shape``: None if free."""

    name: str
    dtype: str
    shape: tuple[int, ...] | None
    item_bytes: int


def plane_name(linear: str, number: int) -> str:
    """What the tensors of a plane are called before their last dot."""
    return f"{linear}.{number}" if number else linear


def scale_shape(shape: tuple[int, int], plane: Plane) -> tuple[int, ...] | None:
    """Shape of the tensor of scales: [out], [out, groups], or None without one."""
    out, in_ = shape
    if plane.columns is None:
        return None
    return (out,) if plane.columns == in_ else (out, in_ // plane.columns)


def tensors_of(architecture: Architecture, linears: Mapping[str, LinearFacts]) -> Iterator[TensorFacts]:
    """Every tensor of the file, in its order."""
    for name, facts in linears.items():
        try:
            size = packed_nbytes(facts.shape)
        except ValueError as error:
            raise ConfigError(f"matrix {name}: {error}") from error
        for number, plane in enumerate(facts.planes):
            yield TensorFacts(f"{plane_name(name, number)}.codes", "U8", (size,), 1)
            if scales := scale_shape(facts.shape, plane):
                yield TensorFacts(f"{plane_name(name, number)}.scale", "F32", scales, 4)
    for name, size in architecture.vectors():
        yield TensorFacts(name, "F32", (size,), 4)
    for name in ("embedding",) if architecture.tied_embeddings else ("embedding", "head"):
        rows = architecture.vocab_size
        yield TensorFacts(f"{name}.codes", "I8", (rows, architecture.hidden_size), 1)
        yield TensorFacts(f"{name}.scale", "F32", (rows,), 4)
    yield TensorFacts("tokenizer.json", "U8", None, 1)


def version_for(planes: Mapping[str, Sequence[Plane]]) -> int:
    """The oldest version of the format that can say this."""
    simple = all(len(of_one) == 1 and of_one[0].columns is None for of_one in planes.values())
    return ONE_SCALE_VERSION if simple else PLANES_VERSION


def matrix_entries(
    architecture: Architecture, planes: Mapping[str, Sequence[Plane]], version: int
) -> dict[str, Any]:
    """The metadata's ``matrices``; linears without planes are left out, for a reader to miss them."""
    entries: dict[str, Any] = {}
    for name, out, in_ in architecture.linears():
        told = [_plane_entry(plane) for plane in planes.get(name, ())]
        if told and version == ONE_SCALE_VERSION:
            entries[name] = {"shape": [out, in_], **told[0]}
        elif told:
            entries[name] = {"shape": [out, in_], "planes": told}
    return entries


def linear_facts(architecture: Architecture, entries: dict[str, Any], version: int) -> dict[str, LinearFacts]:
    """What ``matrices`` says of every linear, checked.

    Raises:
        ConfigError: a linear is missing or has another shape, a scale or a group size cannot be.
    """
    found = {}
    for name, out, in_ in architecture.linears():
        entry = taken(entries, name, dict, "matrices")
        if entry.get("shape") != [out, in_]:
            raise ConfigError(
                f"matrix {name} has shape {entry.get('shape')}, the architecture needs {[out, in_]}"
            )
        told = [entry] if version == ONE_SCALE_VERSION else taken(entry, "planes", list, f"matrix {name}")
        if not 1 <= len(told) <= MAX_PLANES:
            raise ConfigError(f"matrix {name} has {len(told)} planes, not 1 to {MAX_PLANES}")
        planes = tuple(_plane(name, in_, one, version) for one in told)
        found[name] = LinearFacts((out, in_), planes)
    return found


def taken(place: dict[str, Any], key: str, kind: type, where: str) -> Any:
    """``place[key]``, which must be there and of this kind."""
    value = place.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ConfigError(f"{where}: {key} is {'missing' if key not in place else 'of the wrong type'}")
    return value


def check_texts(name: str, provenance: str) -> None:
    """Return if both can be shown on a terminal: no control characters, no halves of surrogate pairs."""
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise ConfigError(f"the name {name[:20]!r} is not 1 to {MAX_NAME} printable characters")
    if len(provenance) > MAX_PROVENANCE or not provenance.replace("\n", "").isprintable():
        raise ConfigError(f"the provenance is not up to {MAX_PROVENANCE} printable characters")


def _plane_entry(plane: Plane) -> dict[str, Any]:
    # A number that overflows float32 is refused by whoever reads the entry.
    with np.errstate(over="ignore"):
        scale = float(np.float32(plane.scale))
    return {"scale": scale} if plane.columns is None else {"scale": scale, "columns": plane.columns}


def _plane(name: str, in_: int, entry: Any, version: int) -> Plane:
    if not isinstance(entry, dict):
        raise ConfigError(f"matrix {name} has a plane that is not an object")
    scale: Any = entry.get("scale")
    if type(scale) not in (int, float) or not abs(scale) <= float(np.finfo(np.float32).max):
        raise ConfigError(f"matrix {name} has the scale {scale!r}, not a finite float32")
    columns = None if version == ONE_SCALE_VERSION else entry.get("columns")
    if columns is not None and not _divides(columns, in_):
        raise ConfigError(
            f"matrix {name} has a scale for each {columns!r} of {in_} columns: "
            f"all of them, or a multiple of {BLOCK_COLUMNS} that divides them, is needed"
        )
    return Plane(float(scale), columns)


def _divides(columns: Any, in_: int) -> bool:
    if type(columns) is not int or not 1 <= columns <= in_:
        return False
    return columns == in_ or (columns % BLOCK_COLUMNS == 0 and in_ % columns == 0)
