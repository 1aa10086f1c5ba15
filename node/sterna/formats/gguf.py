"""The adapter as a GGUF file: llama.cpp takes it with `--lora`, over its base (``gguf_base``).

A LoRA adapter has no key for its rank: it is the first dimension of B. llama.cpp multiplies by alpha / rank,
and refuses an adapter that names another architecture than its model.
"""

from __future__ import annotations

from pathlib import Path

from sterna.formats.decoder import Shape
from sterna.formats.gguf_file import Tensor, Value, gguf_pieces
from sterna.formats.gguf_names import architecture_of, row_order, tensor_name
from sterna.formats.output import write_file
from sterna_protocol.merge.adapter import Adapter, encode_adapter, lora_factors
from sterna_protocol.swarm.charter import Charter
from sterna_protocol.wire.chunks import blob_digest


def write_gguf(path: Path, *, charter: Charter, adapter: Adapter, shape: Shape) -> None:
    """Write ``adapter`` for llama.cpp; the same bytes everywhere.

    Args:
        shape: of the base, for which the charter has only the linears.

    Raises:
        ConfigError: ``path`` is a folder, llama.cpp has no decoder of this shape, or GGUF has no name for an
            adapted linear.
        StorageError: the disk refused; what was there is as it was.
    """
    tensors: dict[str, Tensor] = {}
    for name, (a, b) in lora_factors(charter, adapter).items():
        order = row_order(shape, name)
        tensors[f"{tensor_name(name)}.lora_a"] = Tensor.of(a)
        tensors[f"{tensor_name(name)}.lora_b"] = Tensor.of(b if order is None else b[order])
    rank = charter.adapter.rank * charter.adapter.subspaces
    keys: dict[str, Value] = {
        "general.architecture": architecture_of(shape),
        "general.type": "adapter",
        "general.name": charter.name,
        "adapter.type": "lora",
        "adapter.lora.alpha": float(charter.adapter.scale * rank),
        "sterna.swarm": charter.swarm_id.hex(),
        "sterna.adapter": blob_digest(encode_adapter(charter, adapter)).hex(),
    }
    write_file(path, gguf_pieces(keys, tensors))
