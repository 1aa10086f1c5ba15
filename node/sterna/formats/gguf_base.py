"""The base as a GGUF file: llama.cpp loads it, and takes a pulled adapter over it with `--lora`.

llama.cpp multiplies by the numbers as they stand: a linear is its codes times its scales, in F16 or, exactly
but for the scale's rounding to F16, as TQ2_0. Activations are not rounded to int8 a token there, so that its
logits are close to Sterna's and not equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sterna.errors import ConfigError
from sterna.formats.decoder import Dialogue, Rows, Shape, TernaryDecoder, row_blocks, weights_of
from sterna.formats.gguf_file import (
    TERNARY_BLOCK,
    Tensor,
    TensorType,
    Value,
    block_scales,
    gguf_pieces,
    halves,
    ternary_blocks,
)
from sterna.formats.gguf_names import architecture_of, row_order, tensor_name
from sterna.formats.gguf_tokens import tokenizer_keys
from sterna.formats.output import write_file
from sterna_kernels import TernaryMatrix


class LinearType(StrEnum):
    """How linears are held."""

    F16 = "f16"
    TQ2_0 = "tq2_0"


_FILE_TYPES = {LinearType.F16: 1, LinearType.TQ2_0: 37}


def write_gguf_base(path: Path, base: TernaryDecoder, dialogue: Dialogue, linears: LinearType) -> None:
    """Write ``base`` for llama.cpp; the same bytes everywhere.

    Raises:
        ConfigError: llama.cpp has no decoder of this shape or no tokenizer of this kind, TQ2_0 cannot hold a
            linear, or ``path`` is a folder.
        StorageError: the disk refused; what was there is as it was.
    """
    shape = base.architecture
    keys = _shape_keys(base, linears) | tokenizer_keys(base.tokenizer_json, dialogue, shape.vocab_size)
    write_file(path, gguf_pieces(keys, dict(_tensors(base, linears))))


def _shape_keys(base: TernaryDecoder, linears: LinearType) -> dict[str, Value]:
    shape = base.architecture
    kind = architecture_of(shape)
    keys: dict[str, Value] = {
        "general.architecture": kind,
        "general.type": "model",
        "general.name": base.name,
        "general.file_type": _FILE_TYPES[linears],
        "general.quantization_version": 2,
        f"{kind}.vocab_size": shape.vocab_size,
        f"{kind}.context_length": shape.max_context,
        f"{kind}.embedding_length": shape.hidden_size,
        f"{kind}.block_count": shape.layers,
        f"{kind}.feed_forward_length": shape.ffn_size,
        f"{kind}.attention.head_count": shape.heads,
        f"{kind}.attention.head_count_kv": shape.kv_heads,
        f"{kind}.attention.key_length": shape.head_size,
        f"{kind}.attention.value_length": shape.head_size,
        f"{kind}.attention.layer_norm_rms_epsilon": float(shape.norm_eps),
        f"{kind}.rope.dimension_count": shape.head_size,
        f"{kind}.rope.freq_base": float(shape.rope_theta),
        "sterna.base": base.digest.hex(),
    }
    # Without this key it is SiLU; "silu" itself stands for another graph, of a gate and an up in one tensor.
    return keys | ({f"{kind}.hidden_activation": shape.activation} if shape.activation != "silu" else {})


def _tensors(base: TernaryDecoder, linears: LinearType) -> Iterator[tuple[str, Tensor]]:
    shape = base.architecture
    yield "token_embd.weight", _rows("token_embd", base.embedding)
    if not shape.tied_embeddings:
        yield "output.weight", _rows("output", base.head)
    for key, _ in shape.vectors():
        yield tensor_name(key) if "." in key else "output_norm.weight", Tensor.of(base.vector(key))
    for key, _, _ in shape.linears():
        planes = base.planes(key)
        yield tensor_name(key), _linear(shape, key, planes, linears)


def _rows(name: str, rows: Rows) -> Tensor:
    return Tensor(TensorType.F16, rows[0].shape, lambda: (halves(block, name) for block in row_blocks(rows)))


def _linear(shape: Shape, key: str, planes: tuple[TernaryMatrix, ...], linears: LinearType) -> Tensor:
    order = row_order(shape, key)
    sizes = planes[0].shape
    if linears is LinearType.F16:
        return Tensor(TensorType.F16, sizes, lambda: [halves(_ordered(weights_of(planes), order), key)])
    scales = block_scales(planes[0])
    if len(planes) > 1 or scales is None:
        raise ConfigError(
            f"{key} is not one plane with a scale for each {TERNARY_BLOCK} columns or more, which TQ2_0 "
            f"needs; choose --type f16"
        )
    return Tensor(TensorType.TQ2_0, sizes, partial(_blocks, planes[0], scales, order, key))


def _blocks(
    matrix: TernaryMatrix, scales: NDArray[np.float32], order: NDArray[np.intp] | None, key: str
) -> list[bytes]:
    codes = matrix.codes()
    if order is not None:
        codes, scales = codes[order], scales[order]
    return [ternary_blocks(codes, scales, key)]


def _ordered(rows: NDArray[np.float32], order: NDArray[np.intp] | None) -> NDArray[np.float32]:
    return rows if order is None else rows[order]
