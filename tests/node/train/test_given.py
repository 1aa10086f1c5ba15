"""A given adapter computes what the swarm's own does, at once and token by token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from sterna.errors import ConfigError
from sterna.train.base import Base
from sterna.train.given import Given, read_given
from sterna.train.lora import Lora, float_state
from sterna.train.model import Decoder, KeyValueCache
from sterna_protocol.merge.adapter import lora_factors
from tests.node.store import sample
from tests.node.train.test_model import bound, tokens_for
from tests.node.train.tiny import charter_for, tiny_base


@pytest.fixture
def base(tmp_path: Path) -> Base:
    return tiny_base(tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("pieces", [[19], [1] * 19], ids=["at once", "token by token"])
def test_it_computes_what_the_swarms_adapter_computes(base: Base, pieces: list[int]) -> None:
    charter = charter_for(base.architecture)
    adapter = sample.random_adapter(charter)
    scale = np.float32(charter.adapter.scale)
    given = Given({name: (a, b * scale) for name, (a, b) in lora_factors(charter, adapter).items()})
    tokens = tokens_for(base, sequences=1)
    decoder = Decoder(base, backward="fp32")
    expected = decoder.hidden(tokens, lora=Lora(charter.adapter, float_state(adapter), trained=None))
    cache, parts, start = KeyValueCache(base.architecture, sequences=1, tokens=19), [], 0
    for piece in pieces:
        parts.append(decoder.hidden(tokens[:, start : start + piece], lora=given, cache=cache))
        start += piece
    assert (torch.cat(parts, 1) - expected).abs().max() <= 2 * bound(base, expected)
    assert (decoder.hidden(tokens) - expected).abs().max() > 100 * bound(base, expected)


@torch.no_grad()
def test_a_linear_that_it_lacks_stays_as_it_is(base: Base) -> None:
    tokens = tokens_for(base)
    decoder = Decoder(base, backward="fp32")
    assert torch.equal(decoder.hidden(tokens, lora=Given({})), decoder.hidden(tokens))


@pytest.mark.parametrize(
    "tensors",
    [
        {"layers.0.q.a": (4, 48)},
        {"layers.0.q.a": (4, 48), "layers.0.q.b": (65, 4)},
        {"layers.0.q.a": (4, 47), "layers.0.q.b": (64, 4)},
        {"layers.0.q.a": (4, 48), "layers.0.q.b": (64, 5)},
        {"layers.9.q.a": (4, 48), "layers.9.q.b": (64, 4)},
    ],
    ids=["a half", "other rows", "other columns", "two ranks", "no such layer"],
)
def test_what_does_not_fit_the_base_is_refused(
    base: Base, tmp_path: Path, tensors: dict[str, tuple[int, int]]
) -> None:
    path = tmp_path / "given.safetensors"
    save_file({name: np.zeros(shape, np.float32) for name, shape in tensors.items()}, path)
    linears = {name: (out, in_) for name, out, in_ in base.architecture.linears()}
    with pytest.raises(ConfigError, match=r"the adapter's layers\.\d\.q does not fit the base"):
        read_given(path, linears)


def test_a_file_that_is_none_is_refused(base: Base, tmp_path: Path) -> None:
    path = tmp_path / "given.safetensors"
    with pytest.raises(ConfigError, match="cannot be read"):
        read_given(path, {})
    path.write_bytes(b"no")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_given(path, {})
