"""A base file: the frozen ternary decoder every peer of a swarm holds, memory-mapped and checked before use.

The file is an ordinary safetensors file. Its tensors, in this order, each starting at a multiple of 64 bytes
(U8 tensors ``padding.<n>`` fill gaps that odd sizes leave):

    layers.<l>.<linear>.codes   U8   the kernels' packed bytes (sterna_kernels.layout)
    layers.<l>.<norm>, final_norm  F32
    embedding.codes, embedding.scale   I8 [V, D], F32 [V]      row = codes * scale
    head.codes, head.scale      the same, only without tied embeddings
    tokenizer.json              U8, padded with spaces

The metadata key ``sterna`` holds JSON: version, name, provenance, architecture, and each matrix's
shape and scale.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sterna.errors import ConfigError, StorageError
from sterna_kernels import TernaryMatrix, packed_nbytes
from sterna_protocol.wire.chunks import file_digest

# A 13B base has about 700 tensors of 100 bytes of header each; more than this is not a base.
MAX_HEADER_BYTES = 1 << 20
# Cache lines, and the widest vector registers, are 64 bytes.
ALIGNMENT = 64
FORMAT_VERSION = 1
# Generous ends of what a ternary decoder can be; they keep sums of sizes far from overflow and headers small.
MAX_VOCAB = 1 << 20
MAX_LAYERS = 512
MAX_HEADS = 1024
MAX_CONTEXT = 1 << 24
# The rotation works on pairs of halves; no published decoder has larger heads than 512.
MAX_HEAD_SIZE = 4096
# Published rotary bases end at 1e8.
MAX_REAL = 1e12
# Enough for a name on a command line and a page about its making.
MAX_NAME, MAX_PROVENANCE = 100, 10_000

Rows = tuple[NDArray[np.int8], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Architecture:
    """Everything a decoder needs to know beside its weights; sizes in elements.

    ``gated`` is act(gate) * up, else act(up); ``sub_norms`` are the norms before o and down.

    Raises:
        ConfigError: a value is out of range, or values contradict each other.
    """

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    ffn_size: int
    rope_theta: float
    norm_eps: float
    activation: Literal["relu2", "silu"]
    sub_norms: bool
    gated: bool
    tied_embeddings: bool
    max_context: int

    def __post_init__(self) -> None:
        limits = {
            "vocab_size": MAX_VOCAB,
            "layers": MAX_LAYERS,
            "heads": MAX_HEADS,
            "max_context": MAX_CONTEXT,
        }
        limits |= {"kv_heads": MAX_HEADS, "head_size": MAX_HEAD_SIZE}
        for name in (
            "vocab_size",
            "hidden_size",
            "layers",
            "heads",
            "kv_heads",
            "head_size",
            "ffn_size",
            "max_context",
        ):
            value, most = getattr(self, name), limits.get(name, MAX_VOCAB)
            if type(value) is not int or not 1 <= value <= most:
                raise ConfigError(f"architecture: {name} is {value!r}, not a whole number in 1..{most}")
        for name in ("rope_theta", "norm_eps"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value <= MAX_REAL:
                raise ConfigError(f"architecture: {name} is {value!r:.40}, not a number in 0..{MAX_REAL:g}")
        for name in ("sub_norms", "gated", "tied_embeddings"):
            if type(getattr(self, name)) is not bool:
                raise ConfigError(f"architecture: {name} is {getattr(self, name)!r}, not true or false")
        if self.activation not in ("relu2", "silu"):
            raise ConfigError(f"architecture: activation is {self.activation!r}, not relu2 or silu")
        if self.heads % self.kv_heads or self.head_size % 2:
            raise ConfigError(
                f"architecture: {self.heads} heads over {self.kv_heads} kv heads of size {self.head_size}: "
                "heads must be a multiple of kv heads and the size even"
            )

    def linears(self) -> list[tuple[str, int, int]]:
        """(name, out, in) of every ternary matrix, in canonical order."""
        attention, kv = self.heads * self.head_size, self.kv_heads * self.head_size
        one = [
            ("q", attention, self.hidden_size),
            ("k", kv, self.hidden_size),
            ("v", kv, self.hidden_size),
            ("o", self.hidden_size, attention),
            ("gate", self.ffn_size, self.hidden_size),
            ("up", self.ffn_size, self.hidden_size),
            ("down", self.hidden_size, self.ffn_size),
        ]
        kept = [linear for linear in one if self.gated or linear[0] != "gate"]
        return [
            (f"layers.{layer}.{name}", out, in_) for layer in range(self.layers) for name, out, in_ in kept
        ]

    def linears_of_a_layer(self) -> tuple[tuple[str, int, int], ...]:
        """(name, out, in) of one layer's ternary matrices, with the bare names that a charter has."""
        prefix = "layers.0."
        return tuple(
            (name.removeprefix(prefix), out, in_)
            for name, out, in_ in self.linears()
            if name.startswith(prefix)
        )

    def vectors(self) -> list[tuple[str, int]]:
        """(name, size) of every norm weight, in canonical order."""
        one = [("attn_norm", self.hidden_size), ("attn_sub_norm", self.heads * self.head_size)]
        one += [("ffn_norm", self.hidden_size), ("ffn_sub_norm", self.ffn_size)]
        kept = [vector for vector in one if self.sub_norms or not vector[0].endswith("sub_norm")]
        norms = [(f"layers.{layer}.{name}", size) for layer in range(self.layers) for name, size in kept]
        return [*norms, ("final_norm", self.hidden_size)]


class Base:
    """An open base file. Arrays are read-only views of the mapping and keep it alive.

    Made by ``open_base``.
    """

    __slots__ = ("_data", "_digest", "_matrices", "_spans", "architecture", "name", "path", "provenance")

    def __init__(
        self,
        *,
        path: Path,
        data: NDArray[np.uint8],
        spans: Mapping[str, tuple[int, int]],
        matrices: Mapping[str, tuple[tuple[int, int], float]],
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
        self._matrices = matrices
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

    def matrix(self, name: str) -> TernaryMatrix:
        """One linear's weights, viewing the mapped file.

        Raises:
            KeyError: the base has no such linear.
        """
        shape, scale = self._matrices[name]
        return TernaryMatrix.from_packed(self._bytes(f"{name}.codes"), shape, scale)

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
    metadata = _json_object(_taken(_taken(header, "__metadata__", dict, "header"), "sterna", str, "metadata"))
    if _taken(metadata, "version", int, "metadata") != FORMAT_VERSION:
        raise ConfigError(f"base format version {metadata['version']}, this release reads {FORMAT_VERSION}")
    architecture = _architecture(_taken(metadata, "architecture", dict, "metadata"))
    matrices = _matrix_facts(architecture, _taken(metadata, "matrices", dict, "metadata"))
    spans: dict[str, tuple[int, int]] = {}
    for tensor, dtype, shape, item_bytes in _layout(architecture):
        entry = _taken(header, tensor, dict, "header")
        if entry.get("dtype") != dtype or (shape is not None and entry.get("shape") != shape):
            raise ConfigError(
                f"tensor {tensor} is {entry.get('dtype')} {entry.get('shape')}, expected {dtype} {shape}"
            )
        offsets = entry.get("data_offsets")
        if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(n) is int for n in offsets)):
            raise ConfigError(f"tensor {tensor} has the offsets {offsets!r}")
        start, end = data_start + offsets[0], data_start + offsets[1]
        if not data_start <= start <= end <= data.size:
            raise ConfigError(
                f"tensor {tensor} lies at {start}..{end}, outside the file of {data.size} bytes"
            )
        if shape is not None and end - start != math.prod(shape) * item_bytes:
            raise ConfigError(
                f"tensor {tensor} has {end - start} bytes, {shape} of {dtype} need another number"
            )
        if start % ALIGNMENT:
            raise ConfigError(f"tensor {tensor} starts at {start}, not at a multiple of {ALIGNMENT}")
        spans[tensor] = (start, end)
    name = _taken(metadata, "name", str, "metadata")
    provenance = _taken(metadata, "provenance", str, "metadata")
    _check_texts(name, provenance)
    return Base(
        path=path,
        data=data,
        spans=spans,
        matrices=matrices,
        architecture=architecture,
        name=name,
        provenance=provenance,
        digest=digest,
    )


def _check_texts(name: str, provenance: str) -> None:
    # Both are shown on terminals, so they hold no control characters and no halves of surrogate pairs.
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise ConfigError(f"the name {name[:20]!r} is not 1 to {MAX_NAME} printable characters")
    if len(provenance) > MAX_PROVENANCE or not provenance.replace("\n", "").isprintable():
        raise ConfigError(f"the provenance is not up to {MAX_PROVENANCE} printable characters")


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


def _taken(place: dict[str, Any], key: str, kind: type, where: str) -> Any:
    value = place.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ConfigError(f"{where}: {key} is {'missing' if key not in place else 'of the wrong type'}")
    return value


def _architecture(facts: dict[str, Any]) -> Architecture:
    names = {field.name for field in fields(Architecture)}
    if set(facts) != names:
        raise ConfigError(f"architecture: missing or unknown {', '.join(sorted(names ^ set(facts)))}"[:200])
    return Architecture(**facts)


def _matrix_facts(
    architecture: Architecture, facts: dict[str, Any]
) -> dict[str, tuple[tuple[int, int], float]]:
    found = {}
    for name, out, in_ in architecture.linears():
        entry = _taken(facts, name, dict, "matrices")
        if entry.get("shape") != [out, in_]:
            raise ConfigError(
                f"matrix {name} has shape {entry.get('shape')}, the architecture needs {[out, in_]}"
            )
        scale = entry.get("scale")
        if type(scale) not in (int, float) or not abs(scale) <= float(np.finfo(np.float32).max):
            raise ConfigError(f"matrix {name} has the scale {scale!r}, not a finite float32")
        found[name] = ((out, in_), float(scale))
    return found


def _layout(architecture: Architecture) -> Iterator[tuple[str, str, list[int] | None, int]]:
    """(name, dtype, shape or None if free, bytes an item) of every tensor, in file order."""
    for name, out, in_ in architecture.linears():
        try:
            size = packed_nbytes((out, in_))
        except ValueError as error:
            raise ConfigError(f"matrix {name}: {error}") from error
        yield f"{name}.codes", "U8", [size], 1
    for name, size in architecture.vectors():
        yield name, "F32", [size], 4
    for name in ("embedding",) if architecture.tied_embeddings else ("embedding", "head"):
        yield f"{name}.codes", "I8", [architecture.vocab_size, architecture.hidden_size], 1
        yield f"{name}.scale", "F32", [architecture.vocab_size], 4
    yield "tokenizer.json", "U8", None, 1


def write_base(
    path: Path,
    *,
    architecture: Architecture,
    matrices: Mapping[str, tuple[NDArray[np.int8], float]],
    vectors: Mapping[str, NDArray[np.float32]],
    embedding: Rows,
    tokenizer_json: bytes,
    name: str,
    provenance: str,
    head: Rows | None = None,
) -> None:
    """Write a base file; the same arguments give the same bytes.

    Args:
        matrices: codes int8 [out, in] in {-1, 0, 1} and scale of every linear of the architecture.
        vectors: every norm weight.
        embedding: int8 codes [V, D], float32 scales [V].
        head: the same for an untied output head.

    Raises:
        ConfigError: something is missing, left over or of the wrong shape, or the header is over its limit.
        ValueError: codes are not ternary.
        StorageError: the file cannot be written.
    """
    if (head is None) != architecture.tied_embeddings:
        raise ConfigError("a head goes with untied embeddings, and only with them")
    parts: dict[str, NDArray[Any]] = {
        f"{key}.codes": TernaryMatrix.from_codes(*value).packed for key, value in matrices.items()
    }
    parts |= {key: np.ascontiguousarray(value, "<f4") for key, value in vectors.items()}
    for key, rows in (("embedding", embedding), ("head", head)):
        if rows is not None:
            parts[f"{key}.codes"] = np.ascontiguousarray(rows[0], np.int8)
            parts[f"{key}.scale"] = np.ascontiguousarray(rows[1], "<f4")
    known = {tensor for tensor, *_ in _layout(architecture)} - {"tokenizer.json"}
    if missing := sorted(known - set(parts)):
        raise ConfigError(f"tensor {missing[0]} is missing")
    if unknown := sorted(set(parts) - known):
        raise ConfigError(f"the architecture has no tensor {', '.join(unknown)}"[:200])
    for tensor, _, shape, _ in _layout(architecture):
        if shape is not None and list(parts[tensor].shape) != shape:
            raise ConfigError(
                f"tensor {tensor} has shape {list(parts[tensor].shape)}, the architecture needs {shape}"
            )
    for key, out, in_ in architecture.linears():
        if list(matrices[key][0].shape) != [out, in_]:
            raise ConfigError(
                f"matrix {key} has shape {list(matrices[key][0].shape)}, the architecture needs {[out, in_]}"
            )
    write_packed_base(
        path,
        architecture=architecture,
        scales={key: scale for key, (_, scale) in matrices.items()},
        tensor=parts.__getitem__,
        tokenizer_json=tokenizer_json,
        name=name,
        provenance=provenance,
    )


def write_packed_base(
    path: Path,
    *,
    architecture: Architecture,
    scales: Mapping[str, float],
    tensor: Callable[[str], NDArray[Any]],
    tokenizer_json: bytes,
    name: str,
    provenance: str,
) -> None:
    """Write a base file tensor by tensor, so that only one needs to be in memory.

    Args:
        scales: of every linear of the architecture.
        tensor: gives the tensor of this name, as the file holds it; called once for each, in file order.

    Raises:
        ConfigError: a scale is missing or not finite, a tensor has another size than the file needs, or the
            header is over its limit.
        StorageError: the file cannot be written.
    """
    _check_texts(name, provenance)
    padded = tokenizer_json + b" " * (-len(tokenizer_json) % ALIGNMENT)
    matrices = {
        key: {"shape": [out, in_], "scale": float(np.float32(scales[key]))}
        for key, out, in_ in architecture.linears()
        if key in scales
    }
    _matrix_facts(architecture, matrices)
    facts = {
        "version": FORMAT_VERSION,
        "name": name,
        "provenance": provenance,
        "architecture": asdict(architecture),
        "matrices": matrices,
    }
    header: dict[str, Any] = {"__metadata__": {"sterna": json.dumps(facts, allow_nan=False)}}
    sizes: dict[str, int] = {}
    offset = 0
    for key, dtype, shape, item_bytes in _layout(architecture):
        stored = [len(padded)] if shape is None else shape
        sizes[key] = math.prod(stored) * item_bytes
        header[key] = {"dtype": dtype, "shape": stored, "data_offsets": [offset, offset + sizes[key]]}
        offset += sizes[key]
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


def builtin_bases() -> dict[str, Path]:
    """The bases that come with Sterna, by name."""
    folder = Path(str(resources.files("sterna"))) / "data"
    return {path.stem: path for path in sorted(folder.glob("*.sterna"))}
