"""A Hugging Face checkpoint becomes a base file: ternary weights exactly, embeddings rounded to int8 a row.

Known are LlamaForCausalLM (Falcon-E, Falcon3-1.58bit, anything ternary of that shape) and BitNet's own
(microsoft's 2B-4T, 1bitLLM): whatever has the tensors of one of them, and no others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sterna.errors import ConfigError, StorageError
from sterna.formats.checkpoint import Checkpoint
from sterna.formats.peft import MODULES
from sterna.formats.ternary import found_ternary, is_ternary, scaled, unpacked
from sterna.home import BASES, home_folder, prepare_home
from sterna.train.architecture import Architecture
from sterna.train.base import Base, Rows, open_base
from sterna.train.base_writer import write_base
from sterna.train.tokens import TextCodec
from sterna_kernels import TernaryMatrix

NORMS = {
    "attn_norm": ("input_layernorm",),
    "ffn_norm": ("post_attention_layernorm",),
    # microsoft's and 1bitLLM's names
    "attn_sub_norm": ("self_attn.attn_sub_norm", "self_attn.inner_attn_ln"),
    "ffn_sub_norm": ("mlp.ffn_sub_norm", "mlp.ffn_layernorm"),
}
ACTIVATIONS: dict[str, Literal["relu2", "silu"]] = {"silu": "silu", "swish": "silu", "relu2": "relu2"}
MODEL_TYPES = ("llama", "bitnet")
DEFAULT_ROPE_THETA = 10_000.0


def import_base(
    folder: Path, out: Path | None = None, *, name: str | None = None, home: Path | None = None
) -> Base:
    """Write a base file; the same checkpoint and name give the same bytes.

    Args:
        out: the file; ``name``.sterna among the bases of the home if None.
        name: what the base is called; the folder's name if None.

    Raises:
        ConfigError: the folder is no checkpoint, its architecture is another, or a linear is not ternary.
        StorageError: a file cannot be read or written.
    """
    called = name or folder.resolve().name
    path = _place(called, home) if out is None else out
    checkpoint = Checkpoint(folder)
    TextCodec(checkpoint.tokenizer_json)  # refuses what is no tokenizer
    architecture = _architecture(checkpoint)
    names = _Names(checkpoint, architecture)
    multiplies = _scale_multiplies(checkpoint.config)
    matrices = {
        key: (_matrix(checkpoint, names.of(key), out_, in_, multiplies=multiplies),)
        for key, out_, in_ in architecture.linears()
    }
    vectors = {key: _shaped(checkpoint, names.of(key), (size,)) for key, size in architecture.vectors()}
    shape = (architecture.vocab_size, architecture.hidden_size)
    write_base(
        path,
        architecture=architecture,
        matrices=matrices,
        vectors=vectors,
        embedding=_rounded(_shaped(checkpoint, "model.embed_tokens.weight", shape)),
        head=None if architecture.tied_embeddings else _rounded(_shaped(checkpoint, "lm_head.weight", shape)),
        tokenizer_json=checkpoint.tokenizer_json,
        name=called,
        provenance=f"imported from the checkpoint {called}; embeddings rounded to int8",
    )
    return open_base(path)


def _place(name: str, home: Path | None) -> Path:
    if Path(name).name != name or name.startswith("."):
        raise ConfigError(
            f"the name {name[:20]!r} cannot be that of a file; choose another with --name, or use -o"
        )
    folder = home_folder(home)
    try:
        prepare_home(folder)
        (folder / BASES).mkdir(exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be made: {error.strerror or error}") from error
    return folder / BASES / f"{name}.sterna"


class _Names:
    """What the checkpoint calls each linear and norm, after a look at all of its tensors."""

    def __init__(self, checkpoint: Checkpoint, architecture: Architecture) -> None:
        self._names = {"final_norm": "model.norm.weight"}
        for key, _, _ in architecture.linears():
            prefix, _, linear = key.rpartition(".")
            self._names[key] = f"model.{prefix}.{MODULES[linear]}.weight"
        for key, _ in architecture.vectors():
            prefix, _, norm = key.rpartition(".")
            if norm in NORMS:
                choices = [f"model.{prefix}.{choice}.weight" for choice in NORMS[norm]]
                self._names[key] = next((c for c in choices if c in checkpoint.names), choices[0])
        known = set(self._names.values()) | {"model.embed_tokens.weight", "lm_head.weight"}
        known |= {f"{name}_scale" for name in known}
        # Positions' angles follow from the configuration.
        strange = sorted(n for n in checkpoint.names - known if not n.endswith("rotary_emb.inv_freq"))
        if strange:
            raise ConfigError(
                f"the checkpoint has a tensor {strange[0][:100]!r}, which no decoder that Sterna knows has"
            )

    def of(self, key: str) -> str:
        """The tensor of this linear or norm of ours."""
        return self._names[key]


def _architecture(checkpoint: Checkpoint) -> Architecture:
    config = checkpoint.config
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        raise ConfigError(f"config.json: model_type is {kind!r}, not one of {', '.join(MODEL_TYPES)}")
    activation = config.get("hidden_act", "silu" if kind == "llama" else "relu2")
    if activation not in ACTIVATIONS:
        raise ConfigError(f"config.json: hidden_act is {activation!r}, not one of {', '.join(ACTIVATIONS)}")
    heads, hidden = _size(config, "num_attention_heads"), _size(config, "hidden_size")
    sub_norms = any(f"model.layers.0.{name}.weight" in checkpoint.names for name in NORMS["attn_sub_norm"])
    return Architecture(
        vocab_size=_size(config, "vocab_size"),
        hidden_size=hidden,
        layers=_size(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=_size(config, "num_key_value_heads", heads),
        head_size=_size(config, "head_dim", hidden // heads),
        ffn_size=_size(config, "intermediate_size"),
        rope_theta=_rope_theta(config),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        activation=ACTIVATIONS[activation],
        sub_norms=sub_norms,
        gated=True,
        tied_embeddings=config.get("tie_word_embeddings", False),
        max_context=_size(config, "max_position_embeddings"),
    )


def _size(config: dict[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None and default is not None:
        return default
    if type(value) is not int or value < 1:
        raise ConfigError(f"config.json: {key} is {value!r}, not a whole number above 0")
    return value


def _table(config: dict[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise ConfigError(f"config.json: {key} is {value!r:.40}, not a table")
    return value


def _rope_theta(config: dict[str, Any]) -> float:
    """The base of the rotation, which only a plain one has."""
    for key in ("rope_parameters", "rope_scaling"):
        rope = _table(config, key)
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise ConfigError(f"config.json: {key} is of the type {kind!r}, not a plain rotation")
    inside = _table(config, "rope_parameters").get("rope_theta", DEFAULT_ROPE_THETA)
    theta: float = config.get("rope_theta", inside)
    return theta


def _scale_multiplies(config: dict[str, Any]) -> bool:
    """Whether a weight is code * weight_scale, or code / weight_scale: both are called by the same name."""
    quantization = _table(config, "quantization_config")
    if quantization.get("use_rms_norm"):
        raise ConfigError(
            "config.json: use_rms_norm puts a norm into every linear, which Sterna does not have"
        )
    return bool(quantization.get("linear_class") == "autobitlinear")


def _matrix(checkpoint: Checkpoint, name: str, out: int, in_: int, *, multiplies: bool) -> TernaryMatrix:
    weights = checkpoint.tensor(name)
    beside = f"{name}_scale"
    packed = weights.dtype == np.uint8
    if weights.shape != ((-(-out // 4), in_) if packed else (out, in_)):
        raise ConfigError(f"tensor {name} has shape {list(weights.shape)}, {[out, in_]} weights need another")
    if beside not in checkpoint.names:
        if packed:
            raise ConfigError(f"tensor {name} is packed, and {beside} is missing; get the checkpoint again")
        return found_ternary(weights, name)
    scales = checkpoint.tensor(beside)
    if not multiplies:
        if not scales.all():
            raise ConfigError(f"tensor {beside} holds a zero to divide by; get the checkpoint again")
        scales = (1.0 / scales.astype(np.float64)).astype(np.float32)
    if packed:
        return scaled(unpacked(weights, out, name), scales, name)
    if not is_ternary(weights):
        if multiplies and (scales == 1).all():
            return found_ternary(weights, name)
        raise ConfigError(f"{name} is not ternary: beside {beside} only -1, 0 and 1 are expected")
    return scaled(weights.astype(np.int8), scales, name)


def _shaped(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    values = checkpoint.tensor(name)
    if values.shape != shape or values.dtype != np.float32:
        raise ConfigError(f"tensor {name} has shape {list(values.shape)}, config.json needs {list(shape)}")
    return values


def _rounded(rows: NDArray[np.float32]) -> Rows:
    largest = np.abs(rows).max(axis=1)
    scales = np.where(largest > 0, largest / np.float32(127), np.float32(1)).astype(np.float32)
    return np.rint(rows / scales[:, None]).astype(np.int8), scales
