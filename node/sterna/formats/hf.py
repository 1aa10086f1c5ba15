"""The base as a Hugging Face directory: `AutoModelForCausalLM` and PEFT take it, and so does `base import`.

::

    config.json              BitNetForCausalLM with sub-norms, else LlamaForCausalLM
    model.safetensors        model.layers.N.self_attn.q_proj.weight   U8 [out / 4, in], .weight_scale F32 [1]
                             model.embed_tokens, norms, lm_head       F32
    tokenizer.json, tokenizer_config.json, generation_config.json, README.md

The linears are transformers' `AutoBitLinear`: it rounds activations to int8 a token as Sterna does, and the
codes are multiplied by ``weight_scale``. It knows one scale a matrix. A linear with other scales, with
several planes, or with a number of rows that is no multiple of four stands there as the float32 numbers that
it is, [out, in], beside a ``weight_scale`` of 1, which means the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.errors import ConfigError
from sterna.formats.decoder import Dialogue, Shape, TernaryDecoder, row_blocks, weights_of
from sterna.formats.output import Content, write_directory
from sterna.formats.peft import MODULES
from sterna.formats.tensors import Planned, tensor_pieces
from sterna.formats.ternary import PER_BYTE, packed
from sterna_kernels import TernaryMatrix

NORMS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_sub_norm": "self_attn.attn_sub_norm",
    "ffn_sub_norm": "mlp.ffn_sub_norm",
}
"""Names of our norms in transformers' BitNet and Llama."""

_FLOAT32, _BYTE = np.dtype("<f4"), np.dtype("u1")


def write_hf(directory: Path, base: TernaryDecoder, dialogue: Dialogue) -> None:
    """Write ``base`` for `AutoModelForCausalLM.from_pretrained(directory)`; the same bytes everywhere.

    Raises:
        ConfigError: transformers has no decoder of this shape, or ``directory`` holds something else.
        StorageError: the disk refused; what was there is as it was.
    """
    ends = _ends(base, dialogue)
    files: dict[str, Content] = {
        "config.json": _text(_config(base.architecture, ends)),
        "generation_config.json": _text({"_from_model_config": True, **ends}),
        "tokenizer.json": base.tokenizer_json,
        "tokenizer_config.json": _text(_tokenizer_config(base, dialogue)),
        "README.md": _card(base),
        "model.safetensors": tensor_pieces(dict(_tensors(base)), {"format": "pt"}),
    }
    write_directory(directory, files)


def _config(shape: Shape, ends: dict[str, int | None]) -> dict[str, Any]:
    if not shape.gated:
        raise ConfigError(
            "transformers' BitNet and Llama have a gate, which this base has not; it cannot be exported"
        )
    if shape.sub_norms and shape.heads * shape.head_size != shape.hidden_size:
        raise ConfigError(
            f"transformers' BitNet has a sub-norm of the hidden size, {shape.hidden_size}; that of this base "
            f"has {shape.heads * shape.head_size}, so that it cannot be exported"
        )
    kind, model = ("bitnet", "BitNetForCausalLM") if shape.sub_norms else ("llama", "LlamaForCausalLM")
    return {
        "architectures": [model],
        "attention_bias": False,
        "dtype": "float32",
        "head_dim": shape.head_size,
        "hidden_act": shape.activation,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.ffn_size,
        "max_position_embeddings": shape.max_context,
        "mlp_bias": False,
        "model_type": kind,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "quantization_config": {
            "linear_class": "autobitlinear",
            "quant_method": "bitnet",
            "quantization_mode": "offline",
        },
        "rms_norm_eps": shape.norm_eps,
        "rope_parameters": {"rope_theta": float(shape.rope_theta), "rope_type": "default"},
        "tie_word_embeddings": shape.tied_embeddings,
        "vocab_size": shape.vocab_size,
        # Without these a reader takes the numbers of the model that the architecture is named after.
        **ends,
    }


def _tensors(base: TernaryDecoder) -> Iterator[tuple[str, Planned]]:
    for key, out, in_ in base.architecture.linears():
        prefix, _, linear = key.rpartition(".")
        name = f"model.{prefix}.{MODULES[linear]}.weight"
        planes = base.planes(key)
        [first, *others] = planes
        if not others and _has_one_scale(first) and out % PER_BYTE == 0:
            yield name, Planned(_BYTE, (out // PER_BYTE, in_), partial(_packed, first))
            scale = np.array([first.scale], np.float32)
        else:
            yield name, Planned(_FLOAT32, (out, in_), partial(_numbers, planes))
            scale = np.ones(1, np.float32)
        yield f"{name}_scale", Planned.of(scale)
    for key, _ in base.architecture.vectors():
        prefix, _, norm = key.rpartition(".")
        place = f"model.{prefix}.{NORMS[norm]}" if prefix else "model.norm"
        yield f"{place}.weight", Planned.of(base.vector(key))
    shape = (base.architecture.vocab_size, base.architecture.hidden_size)
    yield "model.embed_tokens.weight", Planned(_FLOAT32, shape, lambda: row_blocks(base.embedding))
    if not base.architecture.tied_embeddings:
        yield "lm_head.weight", Planned(_FLOAT32, shape, lambda: row_blocks(base.head))


def _has_one_scale(matrix: TernaryMatrix) -> bool:
    return matrix.row_scales is None and matrix.group_scales is None


def _packed(matrix: TernaryMatrix) -> list[NDArray[np.uint8]]:
    return [packed(matrix.codes())]


def _numbers(planes: tuple[TernaryMatrix, ...]) -> list[NDArray[np.float32]]:
    return [weights_of(planes)]


def _ends(base: TernaryDecoder, dialogue: Dialogue) -> dict[str, int | None]:
    """The numbers of the tokens that begin, end and fill a text."""
    numbers = {token["content"]: token["id"] for token in json.loads(base.tokenizer_json)["added_tokens"]}
    names = {"bos": dialogue.opening, "eos": dialogue.closing, "pad": dialogue.closing}
    return {f"{end}_token_id": numbers.get(name) for end, name in names.items()}


def _tokenizer_config(base: TernaryDecoder, dialogue: Dialogue) -> dict[str, Any]:
    ends = {"bos_token": dialogue.opening, "eos_token": dialogue.closing, "pad_token": dialogue.closing}
    return {
        "chat_template": dialogue.template,
        "clean_up_tokenization_spaces": False,
        "model_max_length": base.architecture.max_context,
        "tokenizer_class": "PreTrainedTokenizerFast",
        **ends,
    }


def _text(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True).encode("utf-8") + b"\n"


def _card(base: TernaryDecoder) -> bytes:
    # The name may be a stranger's; as JSON it stays on one line.
    lines = [
        "---",
        "library_name: transformers",
        "---",
        "",
        "# A ternary base of Sterna",
        "",
        f"* base: {json.dumps(base.name)} (`{base.digest.hex()}`)",
        f"* made from: {json.dumps(base.provenance)}",
        "",
        "```python",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("this directory")',
        'tokenizer = AutoTokenizer.from_pretrained("this directory")',
        'model = PeftModel.from_pretrained(model, "what sterna pull wrote")',
        "```",
        "",
    ]
    return "\n".join(lines).encode("utf-8")
