"""PEFT directories: what peft loads is the adapter to the bit, and what strangers send is checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sterna.errors import ConfigError
from sterna.formats.peft import CARD, CONFIG, WEIGHTS, linears_of, read_peft, write_peft
from sterna_protocol.merge.adapter import lora_factors
from sterna_protocol.swarm.charter import Charter, Linear
from tests.node.store import sample

CHARTERS = {
    "fixed": sample.charter(scheme="fixed", subspaces=1),
    "cycle": sample.charter(scheme="cycle", subspaces=2),
    "pair": sample.charter(scheme="pair", subspaces=1),
}


@pytest.fixture(params=sorted(CHARTERS))
def charter(request: pytest.FixtureRequest) -> Charter:
    return CHARTERS[request.param]


def write(directory: Path, charter: Charter, seed: int = 1) -> None:
    write_peft(directory, charter=charter, adapter=sample.random_adapter(charter, seed), base_name="tiny")


def change_config(directory: Path, **changes: Any) -> None:
    path = directory / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_tensors_are_the_adapters_to_the_bit(tmp_path: Path, charter: Charter) -> None:
    write(tmp_path / "adapter", charter)
    read = read_peft(tmp_path / "adapter", linears=linears_of(charter))
    factors = lora_factors(charter, sample.random_adapter(charter))
    assert read.factors.keys() == factors.keys()
    assert (read.scale, read.base_name) == (charter.adapter.scale, "tiny")
    for name, (a, b) in factors.items():
        assert read.factors[name][0].tobytes() == a.tobytes()
        assert read.factors[name][1].tobytes() == b.tobytes()
        assert b.any()


def test_the_bytes_are_the_same_each_time(tmp_path: Path, charter: Charter) -> None:
    write(tmp_path / "one", charter)
    write(tmp_path / "two", charter)
    for name in (CONFIG, WEIGHTS, CARD):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    write(tmp_path / "two", charter, seed=2)
    assert (tmp_path / "one" / WEIGHTS).read_bytes() != (tmp_path / "two" / WEIGHTS).read_bytes()


def test_a_linear_without_a_peft_name_is_refused(tmp_path: Path) -> None:
    odd = sample.charter(linears=(Linear(name="router", out_features=8, in_features=8),))
    with pytest.raises(ConfigError, match=r"no name for the linear 'router'.*--format sterna"):
        write_peft(tmp_path / "x", charter=odd, adapter=sample.random_adapter(odd), base_name="tiny")
    assert not (tmp_path / "x").exists()


def test_the_name_of_a_base_stays_inside_its_line_of_the_card(tmp_path: Path) -> None:
    charter = CHARTERS["fixed"]
    adapter = sample.random_adapter(charter)
    write_peft(tmp_path / "x", charter=charter, adapter=adapter, base_name="x\n---\nlicense: mine")
    assert (tmp_path / "x" / CARD).read_text().splitlines().count("---") == 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"peft_type": "IA3"}, "not of peft_type LORA"),
        ({"use_dora": True}, "sets use_dora"),
        ({"use_rslora": True}, "sets use_rslora"),
        ({"fan_in_fan_out": True}, "sets fan_in_fan_out"),
        ({"modules_to_save": ["lm_head"]}, "sets modules_to_save"),
        ({"bias": "all"}, "trains biases"),
        ({"rank_pattern": {"q_proj": 2}}, "several ranks"),
        ({"r": 0}, "the rank 0"),
        ({"r": 10**9}, "the rank 1000000000"),
        ({"r": True}, "the rank True"),
        ({"r": "8"}, "the rank '8'"),
        ({"lora_alpha": -1}, "lora_alpha -1"),
        ({"lora_alpha": 1e999}, "lora_alpha inf"),
        ({"r": 9}, r"expected F32/F16/BF16 \[9, 32\]"),
    ],
)
def test_a_config_that_means_something_else_is_refused(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    charter = CHARTERS["cycle"]
    write(tmp_path, charter)
    change_config(tmp_path, **changes)
    with pytest.raises(ConfigError, match=reason):
        read_peft(tmp_path, linears=linears_of(charter))


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"[" * 10_000, b"\xff"])
def test_a_config_that_is_none_is_refused(tmp_path: Path, text: bytes) -> None:
    write(tmp_path, CHARTERS["fixed"])
    (tmp_path / CONFIG).write_bytes(text)
    with pytest.raises(ConfigError):
        read_peft(tmp_path, linears=linears_of(CHARTERS["fixed"]))


def test_a_file_larger_than_it_can_be_is_not_read(tmp_path: Path) -> None:
    charter = CHARTERS["fixed"]
    write(tmp_path, charter)
    with (tmp_path / WEIGHTS).open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match="is larger than"):
        read_peft(tmp_path, linears=linears_of(charter))


def test_a_directory_without_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_peft(tmp_path / "nothing", linears={})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["bitnet", "llama"])
def test_peft_loads_the_directory_and_computes_the_same(tmp_path: Path, family: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    charter = CHARTERS["cycle"]
    write(tmp_path / "adapter", charter)
    classes = {
        "bitnet": (transformers.BitNetConfig, transformers.BitNetForCausalLM),
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    }
    make_config, make_model = classes[family]
    config = make_config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    base = make_model(config).eval()
    loaded = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()

    factors = lora_factors(charter, sample.random_adapter(charter))
    found = {name: tensor for name, tensor in loaded.state_dict().items() if "lora_" in name}
    assert len(found) == 2 * len(factors)
    for name, (a, b) in factors.items():
        [module] = [module for key, module in loaded.named_modules() if _is(key, name)]
        assert module.scaling == {"default": float(charter.adapter.scale)}
        assert module.lora_A["default"].weight.detach().numpy().tobytes() == a.tobytes()
        assert module.lora_B["default"].weight.detach().numpy().tobytes() == b.tobytes()
        x = torch.randn(3, a.shape[1])
        with torch.no_grad():
            change = (module(x) - module.base_layer(x)).numpy()
        expected = charter.adapter.scale * (x.numpy() @ a.T) @ b.T
        # Two float32 products of length <= 48 and <= 8; a relative 1e-5 is a hundred times their rounding.
        np.testing.assert_allclose(change, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def _is(key: str, linear: str) -> bool:
    """Whether a module of the model is our linear, by its place and not by our own table of names."""
    prefix, _, short = linear.rpartition(".")
    return f".{prefix}." in key and key.endswith(f".{short}_proj")
