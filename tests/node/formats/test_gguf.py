"""GGUF adapters: what llama.cpp's own reader finds is the adapter to the bit."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from sterna.errors import ConfigError
from sterna.formats.gguf import write_gguf
from sterna_protocol.merge.adapter import lora_factors
from sterna_protocol.swarm.charter import Linear
from tests.node.store import sample
from tests.node.train.tiny import architecture

# Seven linears of an odd size, so that alignment has something to do.
CHARTER = sample.charter(linears=(Linear(name="q", out_features=5, in_features=7), *sample.LLAMA_LINEARS[1:]))
ADAPTER = sample.random_adapter(CHARTER)
BITNET = architecture(hidden_size=64)
NAMES = {
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "adapter.gguf"
    write_gguf(path, charter=CHARTER, adapter=ADAPTER, shape=BITNET)
    return path


@pytest.mark.filterwarnings("ignore")
def test_the_reference_reader_finds_the_adapter(path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items() if "." in name}
    rank = CHARTER.adapter.rank * CHARTER.adapter.subspaces
    assert keys["general.architecture"] == "bitnet"
    assert keys["general.type"] == "adapter"
    assert keys["adapter.type"] == "lora"
    assert keys["adapter.lora.alpha"] / rank == CHARTER.adapter.scale
    found = {tensor.name: tensor for tensor in reader.tensors}
    factors = lora_factors(CHARTER, ADAPTER)
    assert len(found) == 2 * len(factors)
    for name, (a, b) in factors.items():
        _, layer, linear = name.split(".")
        for suffix, matrix in (("lora_a", a), ("lora_b", b)):
            tensor = found[f"blk.{layer}.{NAMES[linear]}.weight.{suffix}"]
            assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
            # ggml names the fastest dimension first.
            assert tuple(tensor.shape) == matrix.shape[::-1]
            assert np.ascontiguousarray(tensor.data).tobytes() == matrix.tobytes()
            assert tensor.data_offset % 32 == 0


def test_the_head_is_as_the_format_says(path: Path) -> None:
    magic, version, tensors, keys = struct.unpack_from("<4sIQQ", path.read_bytes())
    assert (magic, version, tensors, keys) == (b"GGUF", 3, 2 * 2 * 7, 7)


def test_the_bytes_are_the_same_each_time(path: Path) -> None:
    before = path.read_bytes()
    write_gguf(path, charter=CHARTER, adapter=ADAPTER, shape=BITNET)
    assert path.read_bytes() == before


def test_a_linear_without_a_gguf_name_is_refused(tmp_path: Path) -> None:
    odd = sample.charter(linears=(Linear(name="router", out_features=8, in_features=8),))
    with pytest.raises(ConfigError, match="no name for the linear 'router'"):
        write_gguf(tmp_path / "x", charter=odd, adapter=sample.random_adapter(odd), shape=BITNET)
