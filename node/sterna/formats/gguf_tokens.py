"""A tokenizer as GGUF holds it: byte-level BPE that splits text in a way that llama.cpp has a name for."""

from __future__ import annotations

import json
from typing import Any

from sterna.errors import ConfigError
from sterna.formats.decoder import Dialogue
from sterna.formats.gguf_file import Value

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Of Llama 3, and of bitnet-b1.58-2B-4T, which took its tokenizer over."""

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5


def tokenizer_keys(tokenizer_json: bytes, dialogue: Dialogue, vocab_size: int) -> dict[str, Value]:
    """Tokens, merges and dialogue format; rows of the embedding without a token get a name of their own.

    Raises:
        ConfigError: llama.cpp would split text differently, or there is no token that ends an answer.
    """
    tokenizer: dict[str, Any] = json.loads(tokenizer_json)
    model = tokenizer["model"]
    split = _split(tokenizer)
    if model.get("type") != "BPE" or model.get("byte_fallback") or tokenizer.get("normalizer"):
        raise ConfigError("the base's tokenizer is no byte-level BPE; GGUF export knows no other")
    if split is None:
        raise ConfigError("the base's tokenizer splits text in a way that GGUF export does not know")
    names = {number: token for token, number in model["vocab"].items()}
    kinds = dict.fromkeys(names, _NORMAL)
    for token in tokenizer["added_tokens"]:
        names[token["id"]] = token["content"]
        kinds[token["id"]] = _CONTROL if token["special"] else _USER_DEFINED
    if max(names) >= vocab_size:
        raise ConfigError(f"the base's tokenizer has a token {max(names)}, its embedding {vocab_size} rows")
    numbers = {name: number for number, name in names.items()}
    if dialogue.closing is None:
        raise ConfigError("the base's tokenizer has no token that ends an answer, which GGUF needs")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    keys: dict[str, Value] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": split,
        "tokenizer.ggml.tokens": [names.get(row, f"[PAD{row}]") for row in range(vocab_size)],
        "tokenizer.ggml.token_type": [kinds.get(row, _UNUSED) for row in range(vocab_size)],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": numbers[dialogue.closing],
        "tokenizer.ggml.padding_token_id": numbers[dialogue.closing],
        "tokenizer.ggml.add_bos_token": dialogue.opening is not None,
        "tokenizer.chat_template": dialogue.template,
    }
    if dialogue.opening is not None:
        keys["tokenizer.ggml.bos_token_id"] = numbers[dialogue.opening]
    return keys


def _split(tokenizer: dict[str, Any]) -> str | None:
    """llama.cpp's name for how text is cut before merging; None if it has none."""
    step = tokenizer.get("pre_tokenizer") or {}
    steps = step["pretokenizers"] if step.get("type") == "Sequence" else [step]
    *before, last = [_plain(one) for one in steps]
    if last == ("ByteLevel", True) and not before:
        return "gpt-2"
    if last == ("ByteLevel", True) and before == [("Digits", True)]:
        return "smollm"
    if last == ("ByteLevel", False) and before == [("Split", LLAMA3_SPLIT)]:
        # llama.cpp takes whole words from the vocabulary for it, merges or not.
        return "llama-bpe" if tokenizer["model"].get("ignore_merges") else None
    return None


def _plain(step: dict[str, Any]) -> tuple[str, Any]:
    """A step and the one thing that tells it apart; ("", None) for all others."""
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return "ByteLevel", step.get("use_regex", True)
        case {"type": "Digits", "individual_digits": individual}:
            return "Digits", individual
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            return "Split", pattern
    return "", None
