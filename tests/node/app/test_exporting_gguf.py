"""GGUF bases: llama.cpp's own reader finds the weights, their order and the tokens; others are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sterna.app.exporting import ModelFormat, export_base
from sterna.app.light import Format, write_bare
from sterna.cli import run
from sterna.errors import ConfigError
from sterna.formats.decoder import Dialogue
from sterna.formats.gguf import write_gguf
from sterna.formats.gguf_base import LinearType
from sterna.formats.gguf_tokens import LLAMA3_SPLIT, tokenizer_keys
from sterna.train.base import Base, builtin_bases, open_base
from sterna.train.tokens import TextCodec
from tests.node.store import sample
from tests.node.train import plain
from tests.node.train.tiny import charter_for, tiny_base

gguf = pytest.importorskip("gguf")
pytestmark = pytest.mark.filterwarnings("ignore")

BITNET = {"hidden_size": 256, "heads": 4, "head_size": 64, "ffn_size": 512}
LLAMA = BITNET | {"sub_norms": False, "activation": "silu", "head_size": 128}
BASES = {
    "BitNet": BITNET,
    "Llama": LLAMA,
    "Llama with its own head": LLAMA | {"tied_embeddings": False},
    "scales a row": LLAMA | {"scales": "row"},
    "scales a row and group": BITNET | {"scales": "group"},
    "two planes": LLAMA | {"scales": "planes"},
}
SHORT = {"attn_q": "q", "attn_k": "k", "attn_v": "v", "attn_output": "o"}
SHORT |= {"ffn_gate": "gate", "ffn_up": "up", "ffn_down": "down"}
# A number is off by half of the last of F16's 11 bits, and by half of its smallest step.
F16_SHARE, F16_STEP = 2.0**-11, 2.0**-25


def exported(
    base: Base, out: Path, linears: LinearType | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values and the dequantised tensors of the file, as gguf-py reads them."""
    export_base(str(base.path), out, ModelFormat.GGUF, linears=linears)
    return read(out)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    reader = gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items() if "." in name}
    tensors = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors
    }
    return keys, tensors


def is_rounded(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool((np.abs(found - expected) <= F16_SHARE * np.abs(expected) + F16_STEP).all())


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Row 2i + j of a head is our row i + j * half: the pair that is rotated together stands together."""
    out = np.empty_like(rows)
    size = rows.shape[0] // heads
    for head in range(heads):
        for i in range(size // 2):
            for j in (0, 1):
                out[head * size + 2 * i + j] = rows[head * size + i + j * size // 2]
    return out


@pytest.mark.parametrize("linears", LinearType)
@pytest.mark.parametrize("kind", BASES)
def test_the_reference_reader_finds_the_weights_of_the_base(
    tmp_path: Path, kind: str, linears: LinearType
) -> None:
    base = tiny_base(tmp_path, **BASES[kind])
    a = base.architecture
    if linears is LinearType.TQ2_0 and kind in ("two planes", "scales a row and group"):
        with pytest.raises(ConfigError, match=r"layers\.0\.q is not one plane.*choose --type f16"):
            exported(base, tmp_path / "x.gguf", linears)
        assert not (tmp_path / "x.gguf").exists()
        return
    keys, tensors = exported(base, tmp_path / "x.gguf", linears)
    arch = keys["general.architecture"]
    assert arch == ("bitnet" if a.sub_norms else "llama")
    assert keys[f"{arch}.attention.key_length"] == a.head_size
    assert keys[f"{arch}.rope.freq_base"] == a.rope_theta
    # llama.cpp takes another graph for "silu", and SiLU without the key.
    assert keys.get(f"{arch}.hidden_activation") == ("relu2" if a.activation == "relu2" else None)
    for name, _, _ in a.linears():
        _, layer, short = name.split(".")
        [place] = [long for long, ours in SHORT.items() if ours == short]
        expected = plain.weights(base, name).numpy()
        if arch == "llama" and short in "qk":
            expected = interleaved(expected, a.heads if short == "q" else a.kv_heads)
        assert is_rounded(tensors.pop(f"blk.{layer}.{place}.weight"), expected)
    for name, _ in a.vectors():
        _, layer, norm = name.split(".") if "." in name else ("", "", "")
        place = f"blk.{layer}.{norm}.weight" if norm else "output_norm.weight"
        assert np.array_equal(tensors.pop(place), base.vector(name))
    codes, scale = base.embedding
    assert is_rounded(tensors.pop("token_embd.weight"), codes * scale[:, None])
    if not a.tied_embeddings:
        codes, scale = base.head
        assert is_rounded(tensors.pop("output.weight"), codes * scale[:, None])
    assert not tensors


@pytest.mark.parametrize("kind", ["BitNet", "Llama"])
def test_an_adapter_fits_the_base_it_goes_on(tmp_path: Path, kind: str) -> None:
    base = tiny_base(tmp_path, **BASES[kind])
    keys, tensors = exported(base, tmp_path / "x.gguf")
    charter = charter_for(base.architecture)
    adapter = sample.random_adapter(charter)
    write_gguf(tmp_path / "a.gguf", charter=charter, adapter=adapter, shape=base.architecture)
    adapter_keys, factors = read(tmp_path / "a.gguf")
    assert adapter_keys["general.architecture"] == keys["general.architecture"]
    adapted = {name.removesuffix(".lora_a") for name in factors if name.endswith(".lora_a")}
    assert len(adapted) == len(base.architecture.linears())
    for name in adapted:
        a, b = factors[f"{name}.lora_a"], factors[f"{name}.lora_b"]
        assert (b.shape[0], a.shape[1]) == tensors[name].shape
        assert a.shape[0] == b.shape[1]


def test_the_tokens_and_the_dialogue_are_those_of_the_base(tmp_path: Path) -> None:
    base = open_base(builtin_bases()["tiny"])
    keys, _ = exported(base, tmp_path / "x.gguf")
    tokenizer = json.loads(base.tokenizer_json)
    names = {number: token for token, number in tokenizer["model"]["vocab"].items()}
    assert keys["tokenizer.ggml.tokens"] == [names[number] for number in range(base.architecture.vocab_size)]
    assert keys["tokenizer.ggml.merges"] == [" ".join(pair) for pair in tokenizer["model"]["merges"]]
    special = {token["id"] for token in tokenizer["added_tokens"]}
    assert {number for number, kind in enumerate(keys["tokenizer.ggml.token_type"]) if kind == 3} == special
    codec = TextCodec(base.tokenizer_json)
    assert {keys["tokenizer.ggml.eos_token_id"]} == codec.stop_ids
    assert [keys["tokenizer.ggml.bos_token_id"]] == codec.prompt("")
    assert keys["tokenizer.chat_template"] == codec.chat_template


LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
SPLIT = {"type": "Split", "pattern": {"Regex": LLAMA3_SPLIT}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("step", "ignore_merges", "known"),
    [
        (LEVEL, False, "gpt-2"),
        (
            {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, LEVEL]},
            False,
            "smollm",
        ),
        ({"type": "Sequence", "pretokenizers": [SPLIT, LEVEL | {"use_regex": False}]}, True, "llama-bpe"),
        ({"type": "Sequence", "pretokenizers": [SPLIT, LEVEL | {"use_regex": False}]}, False, None),
        (LEVEL | {"add_prefix_space": True}, False, None),
        ({"type": "Whitespace"}, False, None),
        (None, False, None),
    ],
)
def test_a_way_to_split_text_has_llama_cpps_name_or_is_refused(
    step: dict[str, Any] | None, ignore_merges: bool, known: str | None
) -> None:
    base = open_base(builtin_bases()["tiny"])
    tokenizer = json.loads(base.tokenizer_json)
    tokenizer["pre_tokenizer"] = step
    tokenizer["model"]["ignore_merges"] = ignore_merges
    codec = TextCodec(base.tokenizer_json)
    dialogue = Dialogue(codec.chat_template, codec.opening, codec.closing)
    if known is None:
        with pytest.raises(ConfigError, match="splits text in a way"):
            tokenizer_keys(json.dumps(tokenizer).encode(), dialogue, 512)
    else:
        keys = tokenizer_keys(json.dumps(tokenizer).encode(), dialogue, 512)
        assert keys["tokenizer.ggml.pre"] == known


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ({"gated": False}, "has no gate"),
        ({"hidden_size": 48}, "heads of 64, not 48"),
        ({"hidden_size": 64, "tied_embeddings": False}, "a head that is not its embedding"),
        ({"sub_norms": False}, "the activation relu2 and no sub-norms"),
    ],
)
def test_a_shape_that_llama_cpp_has_not_is_refused(tmp_path: Path, shape: dict[str, Any], says: str) -> None:
    base = tiny_base(tmp_path, **shape)
    with pytest.raises(ConfigError, match=says) as caught:
        exported(base, tmp_path / "x.gguf")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.gguf").exists()


def test_squared_relu_comes_with_a_note_on_which_llama_cpp_computes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["base", "export", "tiny", "--format", "gguf", "--out", str(tmp_path / "a.gguf")]) == 0
    assert "bitnet.hidden_activation" in capsys.readouterr().err
    silu = tiny_base(tmp_path, **LLAMA)
    assert run(["base", "export", str(silu.path), "--format", "gguf", "--out", str(tmp_path / "b.gguf")]) == 0
    assert not capsys.readouterr().err


def test_the_type_of_the_linears_goes_with_gguf_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["base", "export", "tiny", "--type", "tq2_0", "--out", str(tmp_path / "x"), "--format"]
    assert run([*command, "hf"]) == 2
    assert "take --format gguf" in capsys.readouterr().err
    assert run([*command, "gguf"]) == 2  # its rows are 64 wide
    assert "choose --type f16" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_gguf_adapter_needs_the_base_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STERNA_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "bases").mkdir(parents=True)
    base = tiny_base(tmp_path, **LLAMA)
    charter = charter_for(base.architecture).model_copy(update={"base": base.digest})
    adapter = sample.random_adapter(charter)
    with pytest.raises(ConfigError, match=f"put its file into {tmp_path}/home/bases"):
        write_bare(tmp_path / "a.gguf", charter, adapter, Format.GGUF)
    assert not (tmp_path / "a.gguf").exists()
    base.path.rename(tmp_path / "home" / "bases" / "mine.sterna")
    write_bare(tmp_path / "a.gguf", charter, adapter, Format.GGUF)
    assert read(tmp_path / "a.gguf")[0]["general.architecture"] == "llama"
