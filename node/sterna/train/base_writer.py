"""Writing a base file: whole or not at all, and the same bytes for the same parts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.errors import ConfigError, StorageError
from sterna.train.architecture import Architecture
from sterna.train.base import Rows
from sterna.train.base_layout import (
    ALIGNMENT,
    MAX_HEADER_BYTES,
    Plane,
    check_texts,
    linear_facts,
    matrix_entries,
    plane_name,
    tensors_of,
    version_for,
)
from sterna_kernels import TernaryMatrix


def write_base(
    path: Path,
    *,
    architecture: Architecture,
    matrices: Mapping[str, Sequence[TernaryMatrix]],
    vectors: Mapping[str, NDArray[np.float32]],
    embedding: Rows,
    tokenizer_json: bytes,
    name: str,
    provenance: str,
    head: Rows | None = None,
) -> None:
    """Write a base file; the same arguments give the same bytes.

    Args:
        matrices: the planes of every linear of the architecture, each [out, in].
        vectors: every norm weight.
        embedding: int8 codes [V, D], float32 scales [V].
        head: the same for an untied output head.

    Raises:
        ConfigError: something is missing, left over or of the wrong shape, a group size does not divide the
            columns, or the header is over its limit.
        StorageError: the file cannot be written.
    """
    if (head is None) != architecture.tied_embeddings:
        raise ConfigError("a head goes with untied embeddings, and only with them")
    for key, out, in_ in architecture.linears():
        for matrix in matrices.get(key, ()):
            if matrix.shape != (out, in_):
                raise ConfigError(
                    f"matrix {key} has shape {list(matrix.shape)}, the architecture needs {[out, in_]}"
                )
    planes = {key: [_plane_of(matrix) for matrix in of_one] for key, of_one in matrices.items()}
    parts: dict[str, NDArray[Any]] = {}
    for key, of_one in matrices.items():
        for number, matrix in enumerate(of_one):
            parts[f"{plane_name(key, number)}.codes"] = matrix.packed
            scales = _scales_of(matrix)
            if scales is not None:
                parts[f"{plane_name(key, number)}.scale"] = scales.astype("<f4", copy=False)
    parts |= {key: np.ascontiguousarray(value, "<f4") for key, value in vectors.items()}
    for key, rows in (("embedding", embedding), ("head", head)):
        if rows is not None:
            parts[f"{key}.codes"] = np.ascontiguousarray(rows[0], np.int8)
            parts[f"{key}.scale"] = np.ascontiguousarray(rows[1], "<f4")
    version = version_for(planes)
    linears = linear_facts(architecture, matrix_entries(architecture, planes, version), version)
    known = {
        tensor.name: tensor.shape for tensor in tensors_of(architecture, linears) if tensor.shape is not None
    }
    if missing := sorted(set(known) - set(parts)):
        raise ConfigError(f"tensor {missing[0]} is missing")
    if unknown := sorted(set(parts) - set(known)):
        raise ConfigError(f"the architecture has no tensor {', '.join(unknown)}"[:200])
    for tensor, shape in known.items():
        if parts[tensor].shape != shape:
            raise ConfigError(
                f"tensor {tensor} has shape {list(parts[tensor].shape)}, the architecture needs {list(shape)}"
            )
    write_packed_base(
        path,
        architecture=architecture,
        planes=planes,
        tensor=parts.__getitem__,
        tokenizer_json=tokenizer_json,
        name=name,
        provenance=provenance,
    )


def write_packed_base(
    path: Path,
    *,
    architecture: Architecture,
    planes: Mapping[str, Sequence[Plane]],
    tensor: Callable[[str], NDArray[Any]],
    tokenizer_json: bytes,
    name: str,
    provenance: str,
) -> None:
    """Write a base file tensor by tensor, so that only one needs to be in memory.

    Args:
        planes: of every linear of the architecture, one at least.
        tensor: gives the tensor of this name, as the file holds it; called once for each, in file order.

    Raises:
        ConfigError: planes are missing or cannot be, a tensor has another size than the file needs, or the
            header is over its limit.
        StorageError: the file cannot be written.
    """
    check_texts(name, provenance)
    padded = tokenizer_json + b" " * (-len(tokenizer_json) % ALIGNMENT)
    version = version_for(planes)
    matrices = matrix_entries(architecture, planes, version)
    linears = linear_facts(architecture, matrices, version)
    facts = {
        "version": version,
        "name": name,
        "provenance": provenance,
        "architecture": asdict(architecture),
        "matrices": matrices,
    }
    header: dict[str, Any] = {"__metadata__": {"sterna": json.dumps(facts, allow_nan=False)}}
    sizes: dict[str, int] = {}
    offset = 0
    for entry in tensors_of(architecture, linears):
        stored = [len(padded)] if entry.shape is None else list(entry.shape)
        sizes[entry.name] = math.prod(stored) * entry.item_bytes
        end = offset + sizes[entry.name]
        header[entry.name] = {"dtype": entry.dtype, "shape": stored, "data_offsets": [offset, end]}
        offset = end
        if gap := -offset % ALIGNMENT:
            header[f"padding.{len(header) - 1}"] = {
                "dtype": "U8",
                "shape": [gap],
                "data_offsets": [offset, offset + gap],
            }
            offset += gap
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise ConfigError(f"the header grows to {len(text)} bytes, the limit is {MAX_HEADER_BYTES}")
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for key, size in sizes.items():
                data = padded if key == "tokenizer.json" else np.ascontiguousarray(tensor(key)).data
                if memoryview(data).nbytes != size:
                    raise ConfigError(f"tensor {key} has {memoryview(data).nbytes} bytes, {size} are needed")
                file.write(data)
                file.write(bytes(-size % ALIGNMENT))
        partial.replace(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _plane_of(matrix: TernaryMatrix) -> Plane:
    if matrix.group_size is None:
        return Plane(matrix.scale, None if matrix.row_scales is None else matrix.shape[1])
    return Plane(matrix.scale, min(matrix.group_size, matrix.shape[1]))


def _scales_of(matrix: TernaryMatrix) -> NDArray[np.float32] | None:
    """One a row, [out], also for groups as long as a row; or one a row and group, [out, groups]."""
    grouped = matrix.group_scales
    if grouped is None:
        return matrix.row_scales
    return grouped if grouped.shape[1] > 1 else grouped[:, 0]
