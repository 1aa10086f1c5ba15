"""The adapter as a PEFT directory: `PeftModel.from_pretrained` and every tool that reads one take it.

::

    adapter_config.json          rank R = rank * subspaces, alpha = scale * R, so that alpha / R is the scale
    adapter_model.safetensors    base_model.model.model.layers.N.self_attn.q_proj.lora_A.weight  F32 [R, in]
                                 base_model.model.model.layers.N.self_attn.q_proj.lora_B.weight  F32 [out, R]
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sterna.errors import ConfigError
from sterna.formats.output import read_file, write_directory
from sterna.formats.tensors import (
    HEADER_BYTES_PER_TENSOR,
    METADATA_BYTES,
    Expected,
    decode_tensors,
    encode_tensors,
)
from sterna_protocol.merge.adapter import Adapter, encode_adapter, lora_factors
from sterna_protocol.swarm.charter import Charter
from sterna_protocol.wire.chunks import blob_digest

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
CARD = "README.md"

MODULES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
"""Names of our linears in the transformers decoders that Sterna's bases are (BitNet, Llama)."""

MAX_CONFIG_BYTES = 64 * 1024
"""peft writes about 1 KiB."""

MAX_RANK = 4096
"""A rank above the width of a layer is no low rank; decoders in use are wider than this only rarely."""

Factors = dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]


@dataclass(frozen=True, slots=True)
class PeftAdapter:
    """LoRA matrices by linear ("layers.0.q"): ``y += scale * (x A^T) B^T``.

    Shapes: A float32 [r, in], B float32 [out, r].
    """

    factors: Factors
    scale: float
    base_name: str


def write_peft(directory: Path, *, charter: Charter, adapter: Adapter, base_name: str) -> None:
    """Write ``adapter`` for `PeftModel.from_pretrained(base, directory)`; the same bytes everywhere.

    Raises:
        ConfigError: ``directory`` holds something else, or PEFT has no name for an adapted linear.
        StorageError: the disk refused; what was there is as it was.
    """
    names = {linear.name: _module(linear.name) for linear in charter.adapter.linears}
    tensors = {}
    for name, (a, b) in lora_factors(charter, adapter).items():
        tensors[_key(name, "A")] = a
        tensors[_key(name, "B")] = b
    digest = blob_digest(encode_adapter(charter, adapter)).hex()
    metadata = {"format": "pt", "sterna.swarm": charter.swarm_id.hex(), "sterna.adapter": digest}
    rank = charter.adapter.rank * charter.adapter.subspaces
    config = {
        "base_model_name_or_path": base_name,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": charter.adapter.scale * rank,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted(module.rpartition(".")[2] for module in names.values()),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    files = {
        CONFIG: json.dumps(config, indent=2, sort_keys=True).encode("utf-8") + b"\n",
        WEIGHTS: encode_tensors(tensors, metadata),
        CARD: _card(charter, base_name, digest),
    }
    write_directory(directory, files)


def read_peft(directory: Path, *, linears: dict[str, tuple[int, int]]) -> PeftAdapter:
    """The adapter in a PEFT directory that anybody may have made.

    Args:
        linears: (out, in) of each linear that the adapter must have, by name ("layers.0.q").

    Raises:
        ConfigError: it is no plain LoRA adapter of exactly these linears.
        StorageError: the disk refused.
    """
    rank, scale, base_name = _read_config(directory / CONFIG)
    expected = {}
    for name, (rows, columns) in linears.items():
        expected[_key(name, "A")] = Expected(("F32", "F16", "BF16"), (rank, columns))
        expected[_key(name, "B")] = Expected(("F32", "F16", "BF16"), (rows, rank))
    size = sum(4 * rank * (rows + columns) for rows, columns in linears.values())
    limit = 8 + METADATA_BYTES + HEADER_BYTES_PER_TENSOR * len(expected) + size
    path = directory / WEIGHTS
    tensors, _ = decode_tensors(read_file(path, limit), expected, str(path))
    factors = {name: (tensors[_key(name, "A")], tensors[_key(name, "B")]) for name in linears}
    return PeftAdapter(factors, scale, base_name)


def base_name_of(directory: Path) -> str:
    """What a PEFT directory says its base is called; "" if it does not.

    Raises:
        ConfigError: it is no plain LoRA adapter.
        StorageError: the disk refused.
    """
    return _read_config(directory / CONFIG)[2]


def linears_of(charter: Charter) -> dict[str, tuple[int, int]]:
    """(out, in) of each linear that this swarm adapts, by name."""
    return {
        f"layers.{layer}.{linear.name}": (linear.out_features, linear.in_features)
        for layer in range(charter.adapter.layers)
        for linear in charter.adapter.linears
    }


def _read_config(path: Path) -> tuple[int, float, str]:
    """Rank, scale and base of a plain LoRA adapter."""
    try:
        config = json.loads(read_file(path, MAX_CONFIG_BYTES))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON ({error}); fetch or export the adapter again") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ConfigError(f"{path} is not of peft_type LORA; only plain LoRA adapters can be read")
    # Each of these changes what the matrices mean.
    for option in ("use_dora", "use_rslora", "fan_in_fan_out", "alora_invocation_tokens", "modules_to_save"):
        if config.get(option):
            raise ConfigError(f"{path} sets {option}; only plain LoRA adapters can be read")
    if config.get("bias", "none") != "none" or config.get("rank_pattern") or config.get("alpha_pattern"):
        raise ConfigError(f"{path} trains biases or several ranks; only plain LoRA adapters can be read")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= MAX_RANK:
        raise ConfigError(f"{path} has the rank {rank!r}, expected 1 to {MAX_RANK}")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 < alpha < 2**31:
        raise ConfigError(f"{path} has the lora_alpha {alpha!r}, expected a positive number")
    return rank, alpha / rank, str(config.get("base_model_name_or_path", ""))


def _key(name: str, matrix: str) -> str:
    layer, _, linear = name.rpartition(".")
    return f"base_model.model.model.{layer}.{_module(linear)}.lora_{matrix}.weight"


def _module(linear: str) -> str:
    try:
        return MODULES[linear]
    except KeyError:
        raise ConfigError(
            f"PEFT has no name for the linear {linear!r}, only for {', '.join(MODULES)}; "
            f"export with --format sterna"
        ) from None


def _card(charter: Charter, base_name: str, digest: str) -> bytes:
    """A model card: what this is and how to use it, for whoever gets only the directory."""
    # Names come from a charter that a stranger may have written; as JSON they stay on one line.
    lines = [
        "---",
        "library_name: peft",
        f"base_model: {json.dumps(base_name)}",
        "---",
        "",
        "# Adapter of a Sterna swarm",
        "",
        f"* swarm: {json.dumps(charter.name)} (`{charter.swarm_id.hex()}`)",
        f"* adapter: `{digest}`",
        f"* base: {json.dumps(base_name)}",
        "",
        "```python",
        "from peft import PeftModel",
        f'model = PeftModel.from_pretrained(base, "this directory")  # base: {json.dumps(base_name)}',
        "```",
        "",
    ]
    return "\n".join(lines).encode("utf-8")
