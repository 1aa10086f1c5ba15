"""Checkpoints become bases: Falcon-E's, BitNet's and plain ternary numbers, exactly; others are refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sterna.app.founding import base_of_charter, find_base
from sterna.app.importing import import_base
from sterna.cli import run
from sterna.errors import ConfigError
from sterna.train.base import Base
from sterna.train.loss import Head
from sterna.train.model import Decoder
from tests.node.train import plain
from tests.node.train.test_model import bound, tokens_for
from tests.node.train.test_parity import FLIPPED
from tests.node.train.tiny import architecture, charter_for, tokenizer_json

SHAPE = architecture(
    vocab_size=264, hidden_size=128, heads=4, kv_heads=2, head_size=32, ffn_size=256, activation="silu"
)
CONFIG = {
    "model_type": "llama",
    "vocab_size": 264,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 256,
    "rope_theta": 1000042.0,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "max_position_embeddings": 64,
}
FALCON = CONFIG | {"quantization_config": {"quant_method": "bitnet"}}
BITNET = CONFIG | {
    "model_type": "bitnet",
    "hidden_act": "relu2",
    "tie_word_embeddings": True,
    "quantization_config": {
        "quant_method": "bitnet",
        "linear_class": "autobitlinear",
        "quantization_mode": "offline",
    },
}
PLACES = dict.fromkeys("qkvo", "self_attn") | dict.fromkeys(("gate", "up", "down"), "mlp")


def packed(codes: np.ndarray) -> torch.Tensor:
    """As transformers packs: row i * R + r in bits 2i and 2i+1 of row r."""
    quarters = (codes + 1).astype(np.uint8).reshape(4, -1, codes.shape[1])
    return torch.from_numpy(sum(quarter << 2 * i for i, quarter in enumerate(quarters)).astype(np.uint8))


def tensors_of(config: dict, linear, *, sub_norms: bool = False) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors; ``linear`` gives those of one linear by the ends of their names."""
    rng = np.random.default_rng(0)
    tensors = {}
    for name, out, in_ in SHAPE.linears():
        _, layer, short = name.split(".")
        for end, tensor in linear(rng.integers(-1, 2, (out, in_)).astype(np.int8), rng).items():
            tensors[f"model.layers.{layer}.{PLACES[short]}.{short}_proj.{end}"] = tensor
    norms = {"input_layernorm": 128, "post_attention_layernorm": 128}
    if sub_norms:
        norms |= {"self_attn.attn_sub_norm": 128, "mlp.ffn_sub_norm": 256}
    for layer in range(2):
        for norm, size in norms.items():
            tensors[f"model.layers.{layer}.{norm}.weight"] = torch.from_numpy(rng.uniform(0.5, 1.5, size))
    tensors["model.norm.weight"] = torch.from_numpy(rng.uniform(0.5, 1.5, 128))
    for name in (
        "model.embed_tokens.weight",
        *(() if config["tie_word_embeddings"] else ("lm_head.weight",)),
    ):
        # Multiples of 2^-7 up to 127 in each row: what int8 rows hold exactly.
        rows = rng.integers(-127, 128, (264, 128))
        rows[:, 0] = 127
        tensors[name] = torch.from_numpy(rows / 128)
    return {
        name: tensor if tensor.dtype in (torch.uint8, torch.float16) else tensor.bfloat16()
        for name, tensor in tensors.items()
    }


def packed_linear(codes, rng):
    return {"weight": packed(codes), "weight_scale": torch.from_numpy(rng.uniform(9, 11, 1))}


def multiplied_linear(codes, rng):
    return {"weight": packed(codes), "weight_scale": torch.from_numpy(rng.uniform(0.09, 0.11, 1))}


def grouped_linear(codes, rng):
    """Groups of 128 columns, as Bonsai has them, multiplied out in half precision."""
    scales = rng.uniform(0.05, 0.15, (codes.shape[0], codes.shape[1] // 128, 1)).astype(np.float16)
    return {"weight": torch.from_numpy(codes.reshape(*scales.shape[:2], 128) * scales).flatten(1)}


def row_linear(codes, rng):
    return {"weight": torch.from_numpy(codes * rng.uniform(0.05, 0.15, (codes.shape[0], 1)))}


def checkpoint(folder: Path, config: dict, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_bytes(tokenizer_json())
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


KINDS = {
    "falcon": (FALCON, packed_linear, False),
    "bitnet": (BITNET, multiplied_linear, True),
    "groups": (CONFIG, grouped_linear, False),
    "rows": (CONFIG, row_linear, False),
}


def imported(folder: Path, kind: str) -> tuple[Base, dict, dict[str, torch.Tensor]]:
    config, linear, sub_norms = KINDS[kind]
    tensors = tensors_of(config, linear, sub_norms=sub_norms)
    return (
        import_base(checkpoint(folder / kind, config, tensors), folder / "out.sterna"),
        config,
        tensors,
    )


def transformers_model(config: dict, tensors: dict[str, torch.Tensor]) -> torch.nn.Module:
    from transformers import BitNetConfig, BitNetForCausalLM, LlamaConfig, LlamaForCausalLM
    from transformers.integrations.bitnet import ActQuant, AutoBitLinear, BitLinear

    facts = {key: value for key, value in config.items() if key not in ("quantization_config", "model_type")}
    facts["rope_parameters"] = {"rope_type": "default", "rope_theta": facts.pop("rope_theta")}
    bitnet = config["model_type"] == "bitnet"
    model = (
        BitNetForCausalLM(BitNetConfig(**facts)) if bitnet else LlamaForCausalLM(LlamaConfig(**facts))
    ).eval()

    class RoundedInputs(torch.nn.Linear):
        def forward(self, x):
            return super().forward(ActQuant.apply(x))

    for name, out, in_ in SHAPE.linears():
        _, layer, short = name.split(".")
        place = f"model.layers.{layer}.{PLACES[short]}.{short}_proj"
        if bitnet:
            linear = AutoBitLinear(in_, out, bias=False)
        elif "quantization_config" in config:
            linear = BitLinear(in_, out, bias=False, dtype=torch.float32)
        else:
            linear = RoundedInputs(in_, out, bias=False)
        model.set_submodule(place, linear)
    state = {name: t if t.dtype == torch.uint8 else t.float() for name, t in tensors.items()}
    if bitnet:
        from transformers.integrations.bitnet import unpack_weights

        state = {
            n: unpack_weights(t, torch.float32) if t.dtype == torch.uint8 else t for n, t in state.items()
        }
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    return model.requires_grad_(False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what the import brings along
@pytest.mark.parametrize("kind", KINDS)
def test_an_imported_base_gives_the_logits_that_transformers_gives(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    base, config, tensors = imported(tmp_path, kind)
    theirs = transformers_model(config, tensors)
    tokens = tokens_for(base, sequences=6, length=8, seed=3)
    expected = theirs(torch.from_numpy(tokens)).logits
    got = Head(base.head).logits(Decoder(base, backward="fp32").hidden(tokens).flatten(0, 1))
    difference = (got.view_as(expected) - expected).abs()
    # An activation between two int8 codes may round one way here and the other way there. That token and
    # those after it are then off by a step, 1/127, or two; whatever is wrong is off in every sequence.
    same = (difference.amax(-1) <= 2 * bound(base, expected)).all(1)
    assert same.sum() >= 2
    assert difference.norm() <= FLIPPED * expected.norm()


def test_plain_numbers_come_back_exactly_with_the_fewest_scales(tmp_path):
    for kind in ("groups", "rows"):
        base, _, tensors = imported(tmp_path, kind)
        for name, _, in_ in SHAPE.linears():
            _, layer, short = name.split(".")
            weight = tensors[f"model.layers.{layer}.{PLACES[short]}.{short}_proj.weight"]
            if kind == "groups":
                [plane] = base.planes(name)
                assert np.array_equal(plain.weights(base, name).numpy(), weight.double().numpy())
                assert plane.group_size == (None if in_ == 128 else 128)
            else:
                assert np.array_equal(plain.weights(base, name).numpy(), weight.double().numpy())


def test_the_same_checkpoint_gives_the_same_digest(tmp_path):
    first, _, _ = imported(tmp_path, "falcon")
    again = import_base(tmp_path / "falcon", tmp_path / "again.sterna")
    assert again.digest == first.digest
    assert import_base(tmp_path / "falcon", tmp_path / "x.sterna", name="other").digest != first.digest


def test_shards_are_read_as_one(tmp_path):
    tensors = tensors_of(FALCON, packed_linear)
    whole = import_base(checkpoint(tmp_path / "whole", FALCON, tensors), tmp_path / "a", name="m")
    folder = checkpoint(tmp_path / "shards", FALCON, {})
    (folder / "model.safetensors").unlink()
    halves = {f"{half}.safetensors": sorted(tensors)[half::2] for half in (0, 1)}
    for file, names in halves.items():
        save_file({name: tensors[name].contiguous() for name in names}, folder / file)
    index = {"weight_map": {name: file for file, names in halves.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert import_base(folder, tmp_path / "b", name="m").digest == whole.digest
    index["weight_map"]["x"] = "../elsewhere.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="files beside it"):
        import_base(folder, tmp_path / "c")


Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("config", "tensors", "says"),
    [
        ({"model_type": "gpt2"}, {}, "model_type is 'gpt2'"),
        ({"hidden_act": "gelu"}, {}, "hidden_act is 'gelu'"),
        ({"hidden_size": None}, {}, "hidden_size is None"),
        ({"num_attention_heads": -4}, {}, "num_attention_heads is -4"),
        ({"rope_scaling": {"type": "linear"}}, {}, "'linear', not a plain rotation"),
        ({"quantization_config": {"use_rms_norm": True}}, {}, "use_rms_norm"),
        ({"quantization_config": 7}, {}, "quantization_config is 7"),
        ({"vocab_size": 265}, {}, "embed_tokens.weight has shape"),
        ({"num_hidden_layers": 3}, {}, "no tensor model.layers.2"),
        ({"intermediate_size": 252}, {}, "weights need another"),
        ({}, {Q: torch.randn(128, 128)}, "q_proj.weight is not ternary"),
        ({}, {Q: torch.full((128, 128), torch.nan)}, "NaN"),
        ({}, {f"{Q}_scale": torch.zeros(1)}, "zero to divide by"),
        ({}, {Q: torch.zeros(128, 128, dtype=torch.int32)}, "type, shape or place"),
        ({}, {"model.layers.0.self_attn.q_proj.bias": torch.zeros(128)}, "q_proj.bias"),
        ({}, {"model.layers.0.self_attn.q_norm.weight": torch.zeros(32)}, "q_norm.weight"),
        ({}, {Q: torch.full((32, 128), 255, dtype=torch.uint8)}, "stands for no weight"),
    ],
)
def test_what_cannot_be_imported_is_refused_in_one_line(tmp_path, config, tensors, says):
    whole = tensors_of(FALCON, packed_linear) | tensors
    with pytest.raises(ConfigError, match=says) as caught:
        import_base(checkpoint(tmp_path / "bad", FALCON | config, whole), tmp_path / "out.sterna")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.sterna").exists()


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file_is_refused(tmp_path, missing, capsys):
    folder = checkpoint(tmp_path / "part", FALCON, tensors_of(FALCON, packed_linear))
    (folder / missing).unlink()
    assert run(["base", "import", str(folder), "-o", str(tmp_path / "out.sterna")]) == 2
    said = capsys.readouterr().err
    assert missing in said and said.count("\n") == 1


def test_any_bytes_for_weights_are_refused(tmp_path):
    folder = checkpoint(tmp_path / "cut", FALCON, tensors_of(FALCON, packed_linear))
    data = (folder / "model.safetensors").read_bytes()
    for cut in (0, 7, 100, len(data) - 1):
        (folder / "model.safetensors").write_bytes(data[:cut])
        assert run(["base", "import", str(folder), "-o", str(tmp_path / "out.sterna")]) in (2, 5)


def test_the_command_imports_and_says_what_next(tmp_path, capsys):
    folder = checkpoint(tmp_path / "falcon", FALCON, tensors_of(FALCON, packed_linear))
    out = tmp_path / "falcon.sterna"
    assert run(["base", "import", str(folder), "-o", str(out)]) == 0
    assert f"--base {out}" in capsys.readouterr().out.replace("\n", "")
    assert run(["base", "import", str(folder), "-o", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(out)


def test_an_imported_base_in_the_home_is_found_by_name_and_by_its_swarm(tmp_path, capsys):
    folder = checkpoint(tmp_path / "falcon", FALCON, tensors_of(FALCON, packed_linear))
    home = tmp_path / "home"
    assert run(["base", "import", str(folder), "--home", str(home), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["path"] == str(home / "bases" / "falcon.sterna")
    assert run(["base", "list", "--home", str(home), "--json"]) == 0
    assert "falcon" in [base["name"] for base in json.loads(capsys.readouterr().out)["bases"]]
    base = find_base("falcon", home)
    charter = charter_for(base.base.architecture).model_copy(update={"base": base.base.digest})
    assert base_of_charter(charter, home).path == base.path
    with pytest.raises(ConfigError, match=f"put its file into {tmp_path}/other/bases"):
        base_of_charter(charter, tmp_path / "other")
    for name in ("../falcon", ".hidden", "a/b"):
        with pytest.raises(ConfigError, match="cannot be that of a file"):
            import_base(folder, name=name, home=home)
