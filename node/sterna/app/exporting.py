"""A base leaves for other tools: for transformers and PEFT, or for llama.cpp."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Any

from sterna.app.founding import find_base
from sterna.errors import ConfigError
from sterna.formats.decoder import Dialogue
from sterna.formats.gguf_base import LinearType, write_gguf_base
from sterna.formats.hf import write_hf
from sterna.train.tokens import TextCodec

SQUARED_RELU = (
    "this base has squared ReLU: a llama.cpp that does not read bitnet.hidden_activation, as it does since "
    "August 2026, computes something else without a word"
)


class ModelFormat(StrEnum):
    """What `base export` writes."""

    HF = "hf"
    GGUF = "gguf"


def export_base(
    name: str,
    out: Path,
    format_: ModelFormat,
    *,
    linears: LinearType | None = None,
    home: Path | None = None,
) -> dict[str, Any]:
    """Write the base called ``name`` to ``out``, where nothing may be yet; what was written.

    Args:
        linears: how a GGUF file holds them; F16 if None.

    Raises:
        ConfigError: there is no such base, something stands at ``out``, or the format has no place for a
            decoder of this shape or for such linears.
        StorageError: the disk refused; nothing was written.
    """
    base = find_base(name, home).base
    if os.path.lexists(out):
        raise ConfigError(f"{out} is there already; choose another place with --out, or remove it")
    codec = TextCodec(base.tokenizer_json)
    dialogue = Dialogue(codec.chat_template, codec.opening, codec.closing)
    if format_ is ModelFormat.GGUF:
        write_gguf_base(out, base, dialogue, linears or LinearType.F16)
    elif linears is None:
        write_hf(out, base, dialogue)
    else:
        raise ConfigError(
            "--type says how a GGUF file holds the linears; leave it out, or take --format gguf"
        )
    is_squared = format_ is ModelFormat.GGUF and base.architecture.activation == "relu2"
    return {
        "base": base.name,
        "digest": base.digest.hex(),
        "format": format_.value,
        "bytes": sum(file.stat().st_size for file in ([out] if out.is_file() else out.iterdir())),
        "path": str(out),
        "note": SQUARED_RELU if is_squared else None,
    }
