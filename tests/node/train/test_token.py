"""A token alone goes through each layer in one native call, and comes out as it does on the long way."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sterna.train.base import Base
from sterna.train.lora import Lora
from sterna.train.model import Decoder, KeyValueCache
from sterna_kernels.torch_token import LINEARS, NO_ADAPTER, TokenLayer
from sterna_protocol.merge.scheme import delta_size
from tests.node.train.tiny import scheme_for, tiny_base

EPSILON = float(np.finfo(np.float32).eps)
TOKENS = np.random.default_rng(5).integers(0, 264, (1, 23))
SHAPES = [
    {},
    {"activation": "silu", "sub_norms": False},
    {"kv_heads": 1, "head_size": 10, "hidden_size": 33, "ffn_size": 7, "tied_embeddings": False},
    {"scales": "row"},
    {"scales": "planes", "hidden_size": 64, "ffn_size": 192},
]


def long_way(decoder: Decoder) -> Decoder:
    decoder._layers = [replace(layer, token=None) for layer in decoder._layers]
    return decoder


@torch.no_grad()
def token_by_token(decoder: Decoder, lora: Lora | None) -> tuple[torch.Tensor, KeyValueCache]:
    cache = KeyValueCache(decoder.architecture, sequences=1, tokens=TOKENS.shape[1])
    places = range(TOKENS.shape[1])
    hidden = [decoder.hidden(TOKENS[:, at : at + 1], lora=lora, cache=cache) for at in places]
    return torch.cat(hidden, 1), cache


def frozen_lora(base: Base, scheme: str) -> Lora:
    charter = scheme_for(base.architecture, scheme=scheme)
    # With some seeds a sum's last bit puts an activation on the other side of a half.
    state = 0.05 * np.random.default_rng(0).normal(size=(charter.subspaces, delta_size(charter)))
    return Lora(charter, state.astype(np.float32), trained=None)


@pytest.mark.parametrize("scheme", [None, "cycle", "pair"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_hidden_states_and_cache_are_those_of_the_long_way(tmp_path, shape, scheme):
    base = tiny_base(tmp_path, **shape)
    lora = None if scheme is None else frozen_lora(base, scheme)
    decoder = Decoder(base, backward="fp32")
    got, cache = token_by_token(decoder, lora)
    expected, expected_cache = token_by_token(long_way(decoder), lora)
    # Attention alone adds up in another order, and the adapter in another place: the bound of test_lora.
    a = base.architecture
    widest = max(a.hidden_size, a.ffn_size, a.heads * a.head_size)
    limit = 2 * EPSILON * a.layers * (16 + 4 * widest**0.5) * float(expected.abs().max())
    assert (got - expected).abs().max() <= limit
    for ours, theirs in ((cache.keys, expected_cache.keys), (cache.values, expected_cache.values)):
        assert (ours - theirs).abs().max() <= 2 * limit
    assert cache.length == TOKENS.shape[1]


def test_an_adapter_that_trains_and_gradients_go_the_long_way(tmp_path):
    base = tiny_base(tmp_path)
    decoder = Decoder(base, backward="fp32")
    charter = scheme_for(base.architecture)
    state = np.full((charter.subspaces, delta_size(charter)), 0.01, np.float32)
    expected, _ = token_by_token(long_way(Decoder(base, backward="fp32")), Lora(charter, state, trained=0))
    got, _ = token_by_token(decoder, Lora(charter, state, trained=0))
    assert torch.equal(got, expected)
    cache = KeyValueCache(base.architecture, sequences=1, tokens=1)
    lora = Lora(charter, state, trained=0)
    decoder.hidden(TOKENS[:, :1], lora=lora, cache=cache).sum().backward()
    assert lora.gradient is not None
    assert lora.gradient.any()


def layer_of(base: Base) -> TokenLayer:
    a = base.architecture
    return TokenLayer(
        {name: base.planes(f"layers.0.{name}") for name in LINEARS},
        {name: torch.ones(size) for name, size in (("attn_norm", 48), ("ffn_norm", 48))},
        heads=a.heads,
        kv_heads=a.kv_heads,
        head_size=a.head_size,
        activation=a.activation,
        eps=a.norm_eps,
    )


@pytest.mark.parametrize(
    ("changes", "error", "why"),
    [
        ({"length": 3}, ValueError, "3 tokens in a cache for 3"),
        ({"length": -1}, ValueError, "-1 tokens in a cache for 3"),
        ({"h": torch.zeros(48, dtype=torch.float64)}, TypeError, "float32, not torch.float64"),
        ({"keys": torch.zeros(3, 2, 16).transpose(0, 1)}, ValueError, "not contiguous"),
        ({"adapter": [NO_ADAPTER]}, ValueError, "an adapter has 7 linears"),
    ],
    ids=["cache full", "before the cache", "other type", "strides", "adapter too short"],
)
def test_what_a_native_call_cannot_read_is_refused(tmp_path, changes, error, why):
    arguments = {
        "h": torch.zeros(48),
        "adapter": [NO_ADAPTER] * len(LINEARS),
        "cos": torch.ones(8),
        "sin": torch.zeros(8),
        "keys": torch.zeros(2, 3, 16),
        "values": torch.zeros(2, 3, 16),
        "length": 0,
    }
    with pytest.raises(error, match=why):
        layer_of(tiny_base(tmp_path)).pass_token(**(arguments | changes))
