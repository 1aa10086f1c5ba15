"""Exported bases: transformers and PEFT compute what Sterna computes, and what cannot be is one line."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sterna.app.exporting import ModelFormat, export_base
from sterna.app.importing import import_base
from sterna.cli import run
from sterna.errors import ConfigError
from sterna.formats import decoder, output
from sterna.formats.peft import write_peft
from sterna.train.base import Base, builtin_bases, open_base
from sterna.train.lora import Lora, float_state
from sterna.train.loss import Head
from sterna.train.model import Decoder
from sterna.train.text import Turn
from sterna.train.tokens import TextCodec
from tests.node.store import sample
from tests.node.train import plain
from tests.node.train.test_model import bound, tokens_for
from tests.node.train.test_parity import FLIPPED
from tests.node.train.tiny import charter_for, tiny_base

# What transformers' decoders can be: with sub-norms these are of the hidden size.
BITNET = {"hidden_size": 64, "ffn_size": 128}
LLAMA = BITNET | {"sub_norms": False, "activation": "silu", "head_size": 32}
BASES = {
    "BitNet": BITNET,
    "BitNet with SiLU and rows that are no multiple of four": BITNET | {"activation": "silu", "ffn_size": 66},
    "Llama": LLAMA,
    "Llama with its own head": LLAMA | {"tied_embeddings": False},
    "scales a row": BITNET | {"scales": "row"},
    "scales a row and group": LLAMA | {"scales": "group"},
    "two planes": BITNET | {"scales": "planes"},
}


def exported(base: Base, out: Path) -> Path:
    export_base(str(base.path), out, ModelFormat.HF)
    return out


def is_close(base: Base, got: torch.Tensor, expected: torch.Tensor, *, adapted: bool) -> bool:
    """Whether two float32 computations of the same logits [b, t, V] agree.

    Each may be off by ``bound``; an adapter at most doubles the operations. An activation between two int8
    codes may round one way here and the other way there, which is a step of 1/127, or two, in its sequence.
    """
    difference = (got - expected).abs()
    same = (difference.amax(-1) <= (4 if adapted else 2) * bound(base, expected)).all(1)
    return bool(same.sum() >= 2) and bool(difference.norm() <= FLIPPED * expected.norm())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", BASES)
def test_transformers_and_peft_give_the_logits_that_sterna_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    # transformers compiles its rounding at first use; eager gives the same numbers at once.
    monkeypatch.setattr(torch, "compile", lambda function: function)
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = tiny_base(tmp_path, **BASES[kind])
    folder = exported(base, tmp_path / "hf")
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval().requires_grad_(False)
    tokens = tokens_for(base, sequences=6, length=8, seed=3)
    model, head = Decoder(base, backward="fp32"), Head(base.head)
    expected = theirs(torch.from_numpy(tokens)).logits
    got = head.logits(model.hidden(tokens).flatten(0, 1)).view_as(expected)
    assert is_close(base, got, expected, adapted=False)

    charter = charter_for(base.architecture)
    adapter = sample.random_adapter(charter)
    write_peft(tmp_path / "adapter", charter=charter, adapter=adapter, base_name=base.name)
    with_adapter = PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    changed = with_adapter(torch.from_numpy(tokens)).logits
    lora = Lora(charter.adapter, float_state(adapter), trained=None)
    got = head.logits(model.hidden(tokens, lora=lora).flatten(0, 1)).view_as(changed)
    assert is_close(base, got, changed, adapted=True)
    assert not is_close(base, expected, changed, adapted=True)


@pytest.mark.filterwarnings("ignore")
def test_the_tokenizer_writes_dialogues_as_sterna_does(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    base = open_base(builtin_bases()["tiny"])
    tokenizer = AutoTokenizer.from_pretrained(exported(base, tmp_path / "hf"))
    turns = (
        Turn("system", "Be brief."),
        Turn("user", " What is a tern? "),
        Turn("assistant", "A bird."),
        Turn("user", "Where?"),
    )
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    codec = TextCodec(base.tokenizer_json)
    assert ids == codec.prompt(turns)
    assert {tokenizer.eos_token_id} == codec.stop_ids


@pytest.mark.parametrize("kind", [kind for kind in BASES if kind != "two planes"])
def test_what_was_exported_is_imported_with_the_same_weights(tmp_path: Path, kind: str) -> None:
    base = tiny_base(tmp_path, **BASES[kind])
    again = import_base(exported(base, tmp_path / "hf"), tmp_path / "again.sterna")
    assert again.architecture == base.architecture
    assert again.tokenizer_json == base.tokenizer_json
    for name, _, _ in base.architecture.linears():
        assert torch.equal(plain.weights(again, name), plain.weights(base, name))
    for name, _ in base.architecture.vectors():
        assert np.array_equal(again.vector(name), base.vector(name))


def test_the_bytes_are_the_same_each_time(tmp_path: Path) -> None:
    base = tiny_base(tmp_path, **BITNET)
    one, two = exported(base, tmp_path / "one"), exported(base, tmp_path / "two")
    files = {file.name: file.read_bytes() for file in one.iterdir()}
    assert files == {file.name: file.read_bytes() for file in two.iterdir()}


@pytest.mark.parametrize("format_", ModelFormat)
def test_blocks_of_an_embedding_follow_each_other_without_a_seam(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_: ModelFormat
) -> None:
    base = tiny_base(tmp_path, **BITNET)
    export_base(str(base.path), tmp_path / "one", format_)
    monkeypatch.setattr(decoder, "BLOCK_ROWS", 100)
    export_base(str(base.path), tmp_path / "two", format_)
    name = "model.safetensors" if format_ is ModelFormat.HF else ""
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize(
    ("shape", "says"),
    [({"gated": False} | BITNET, "have a gate"), ({"hidden_size": 48}, "sub-norm of the hidden size, 48")],
)
def test_a_shape_that_transformers_has_not_is_refused(tmp_path: Path, shape: dict, says: str) -> None:
    base = tiny_base(tmp_path, **shape)
    with pytest.raises(ConfigError, match=says) as caught:
        exported(base, tmp_path / "hf")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "hf").exists()


def test_the_command_writes_where_nothing_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tiny-hf"
    command = ["base", "export", "tiny", "--format", "hf", "--out", str(out)]
    assert run([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["path"] == str(out)
    assert told["bytes"] == sum(file.stat().st_size for file in out.iterdir())
    assert run(command) == 2
    said = capsys.readouterr().err
    assert f"{out} is there already; choose another place" in said and said.count("\n") == 1


def test_an_unknown_base_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["base", "export", "mega", "--format", "hf", "--out", str(tmp_path / "x")]) == 2
    said = capsys.readouterr().err
    assert "no base 'mega'" in said and said.count("\n") == 1


def test_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(output.os, "fsync", full)
    assert run(["base", "export", "tiny", "--format", "hf", "--out", str(tmp_path / "hf")]) == 5
    said = capsys.readouterr().err
    assert "No space left on device" in said and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
