"""The adapter as a GGUF file: llama.cpp takes it with `--lora`.

GGUF 3, all little-endian, strings as u64 length and bytes (ggml/docs/gguf.md)::

    "GGUF" | version u32 = 3 | tensors u64 | keys u64
    keys     name string | type u32 | value
    tensors  name string | dimensions u32 | u64 each, fastest first | type u32 = F32 | offset u64
    padding to 32 bytes, then each tensor's data, padded to 32 bytes

A LoRA adapter has no key for its rank: it is the first dimension of B. llama.cpp multiplies by alpha / rank.
Only bases of the architecture ``bitnet`` are written: for ``llama`` the converter permutes the rows of q and
k, and the charter does not know the number of heads.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sterna.errors import ConfigError
from sterna.formats.output import write_file
from sterna_protocol.merge.adapter import Adapter, encode_adapter, lora_factors
from sterna_protocol.swarm.charter import Charter
from sterna_protocol.wire.chunks import blob_digest

ARCHITECTURE = "bitnet"

TENSORS = {
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
"""Names of our linears in GGUF files of decoders (gguf-py, tensor_mapping.py)."""

_VERSION = 3
_ALIGNMENT = 32
_TYPE_FLOAT32 = 6
_TYPE_STRING = 8
_GGML_F32 = 0


def write_gguf(path: Path, *, charter: Charter, adapter: Adapter) -> None:
    """Write ``adapter`` for llama.cpp; the same bytes everywhere.

    Raises:
        ConfigError: ``path`` is a folder, or GGUF has no name for an adapted linear.
        StorageError: the disk refused; what was there is as it was.
    """
    tensors: list[tuple[str, NDArray[np.float32]]] = []
    for name, (a, b) in lora_factors(charter, adapter).items():
        tensors += [(f"{_tensor(name)}.lora_a", a), (f"{_tensor(name)}.lora_b", b)]
    rank = charter.adapter.rank * charter.adapter.subspaces
    keys: dict[str, str | float] = {
        "general.architecture": ARCHITECTURE,
        "general.type": "adapter",
        "general.name": charter.name,
        "adapter.type": "lora",
        "adapter.lora.alpha": float(charter.adapter.scale * rank),
        "sterna.swarm": charter.swarm_id.hex(),
        "sterna.adapter": blob_digest(encode_adapter(charter, adapter)).hex(),
    }
    write_file(path, _encode(keys, tensors))


def _encode(keys: dict[str, str | float], tensors: list[tuple[str, NDArray[np.float32]]]) -> bytes:
    head = [b"GGUF", struct.pack("<IQQ", _VERSION, len(tensors), len(keys))]
    for key, value in keys.items():
        head.append(_string(key))
        if isinstance(value, str):
            head += [struct.pack("<I", _TYPE_STRING), _string(value)]
        else:
            head.append(struct.pack("<If", _TYPE_FLOAT32, value))
    body: list[bytes] = []
    offset = 0
    for name, array in tensors:
        rows, columns = array.shape
        head += [_string(name), struct.pack("<IQQIQ", 2, columns, rows, _GGML_F32, offset)]
        body.append(_padded(array.astype("<f4", copy=False).tobytes()))
        offset += len(body[-1])
    return b"".join([_padded(b"".join(head)), *body])


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)


def _tensor(name: str) -> str:
    prefix, _, linear = name.rpartition(".")
    if linear not in TENSORS:
        raise ConfigError(
            f"GGUF has no name for the linear {linear!r}, only for {', '.join(TENSORS)}; "
            f"export with --format sterna"
        )
    return f"blk.{prefix.removeprefix('layers.')}.{TENSORS[linear]}.weight"
