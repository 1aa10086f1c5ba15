"""A Hugging Face checkpoint on this disk: its configuration, its tokenizer, and its tensors, mapped."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.errors import ConfigError, StorageError

MAX_JSON_BYTES = 1 << 26
"""A tokenizer of 256,000 tokens takes 33 MB; no configuration, index or header is larger."""

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1"}


class Checkpoint:
    """An open checkpoint.

    Attributes:
        config: the contents of config.json.
        tokenizer_json: the contents of tokenizer.json.
    """

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            ConfigError: ``folder`` is not a checkpoint in the safetensors format with a tokenizer.json.
            StorageError: a file cannot be read.
        """
        self._folder = folder
        self.config = _object(folder / "config.json")
        self.tokenizer_json = _bytes(folder / "tokenizer.json")
        self._places: dict[str, tuple[NDArray[np.uint8], str, tuple[int, ...]]] = {}
        for file in self._files():
            self._open(folder / file)

    @property
    def names(self) -> frozenset[str]:
        """The tensors."""
        return frozenset(self._places)

    def tensor(self, name: str) -> NDArray[Any]:
        """One tensor: uint8 as it is, floating-point numbers exactly as float32.

        Raises:
            ConfigError: there is none of that name, or it holds NaN or infinity.
        """
        if name not in self._places:
            raise ConfigError(f"{self._folder} has no tensor {name}; name a whole checkpoint")
        data, dtype, shape = self._places[name]
        raw = data.view(_DTYPES[dtype]).reshape(shape)
        if dtype == "U8":
            return raw
        # bfloat16 is the upper half of a float32.
        wide = (raw.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else raw.astype(np.float32)
        if not np.isfinite(wide).all():
            raise ConfigError(
                f"{self._folder}: tensor {name} holds NaN or infinity; get the checkpoint again"
            )
        return wide

    def _files(self) -> list[str]:
        if (self._folder / WEIGHTS).is_file():
            return [WEIGHTS]
        index = self._folder / INDEX
        if not index.is_file():
            raise ConfigError(
                f"{self._folder} holds neither {WEIGHTS} nor {INDEX}; name a checkpoint's folder"
            )
        files = _object(index).get("weight_map")
        if not isinstance(files, dict) or not all(_is_plain(file) for file in files.values()):
            raise ConfigError(f"{index} does not map tensors to files beside it; get the checkpoint again")
        return sorted(set(files.values()))

    def _open(self, path: Path) -> None:
        try:
            data: NDArray[np.uint8] = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
        except (OSError, ValueError) as error:
            raise StorageError(f"{path}: cannot be read: {error}") from error
        length = int.from_bytes(data[:8].tobytes(), "little")
        if length > min(MAX_JSON_BYTES, data.size - 8):
            raise ConfigError(f"{path}: a header of {length} bytes in a file of {data.size}; get it again")
        header = _parsed(data[8 : 8 + length].tobytes(), path)
        body = data[8 + length :]
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            place = _place(entry, body)
            if place is None:
                raise ConfigError(f"{path}: tensor {name[:100]!r} has a type, shape or place that cannot be")
            self._places[name] = place


def _place(entry: Any, body: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], str, tuple[int, ...]] | None:
    """Bytes, type and shape of a tensor; None if they do not fit together."""
    if not isinstance(entry, dict) or entry.get("dtype") not in _DTYPES:
        return None
    dtype: str = entry["dtype"]
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    if not (_are_sizes(shape) and _are_sizes(offsets) and len(offsets) == 2):
        return None
    start, end = offsets
    if not start <= end <= body.size or end - start != math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize:
        return None
    return body[start:end], dtype, tuple(shape)


def _are_sizes(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers)


def _is_plain(file: Any) -> bool:
    return isinstance(file, str) and Path(file).name == file


def _object(path: Path) -> dict[str, Any]:
    return _parsed(_bytes(path), path)


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is missing; name the folder of a Hugging Face checkpoint") from error
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_JSON_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_JSON_BYTES} bytes; this is not a checkpoint's file")
    return data


def _parsed(text: bytes, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}; get the checkpoint again") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds no JSON object; get the checkpoint again")
    return value
