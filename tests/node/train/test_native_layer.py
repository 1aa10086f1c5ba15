"""Without gradients a layer passes in native calls, a lone token in one: all comes out as on the long way."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sterna.train.base import Base
from sterna.train.lora import Lora
from sterna.train.model import BFLOAT16_TOKENS, Decoder, KeyValueCache
from sterna_kernels.torch_layer import LINEARS, NO_ADAPTER, FrozenLayer
from sterna_protocol.merge.scheme import delta_size
from tests.node.train.tiny import scheme_for, tiny_base

EPSILON = float(np.finfo(np.float32).eps)
TOKENS = np.random.default_rng(5).integers(0, 264, (1, 23))
NO_ADAPTERS = [NO_ADAPTER] * len(LINEARS)
SHAPES = [
    {},
    {"activation": "silu", "sub_norms": False},
    {"kv_heads": 1, "head_size": 10, "hidden_size": 33, "ffn_size": 7, "tied_embeddings": False},
    {"scales": "row"},
    {"scales": "planes", "hidden_size": 64, "ffn_size": 192},
]


def long_way(decoder: Decoder) -> Decoder:
    decoder._layers = [replace(layer, native=None) for layer in decoder._layers]
    return decoder


@torch.no_grad()
def token_by_token(decoder: Decoder, lora: Lora | None) -> tuple[torch.Tensor, KeyValueCache]:
    cache = KeyValueCache(decoder.architecture, sequences=1, tokens=TOKENS.shape[1])
    places = range(TOKENS.shape[1])
    hidden = [decoder.hidden(TOKENS[:, at : at + 1], lora=lora, cache=cache) for at in places]
    return torch.cat(hidden, 1), cache


@torch.no_grad()
def in_two_pieces(decoder: Decoder, lora: Lora | None) -> tuple[torch.Tensor, KeyValueCache]:
    cache = KeyValueCache(decoder.architecture, sequences=1, tokens=TOKENS.shape[1])
    hidden = [decoder.hidden(piece, lora=lora, cache=cache) for piece in np.split(TOKENS, [16], axis=1)]
    return torch.cat(hidden, 1), cache


def frozen_lora(base: Base, scheme: str) -> Lora:
    charter = scheme_for(base.architecture, scheme=scheme)
    # With some seeds a sum's last bit puts an activation on the other side of a half.
    state = 0.05 * np.random.default_rng(0).normal(size=(charter.subspaces, delta_size(charter)))
    return Lora(charter, state.astype(np.float32), trained=None)


def largest_difference(base: Base, expected: torch.Tensor) -> float:
    # Attention alone adds up in another order, and the adapter in another place: the bound of test_lora.
    a = base.architecture
    widest = max(a.hidden_size, a.ffn_size, a.heads * a.head_size)
    return 2 * EPSILON * a.layers * (16 + 4 * widest**0.5) * float(expected.abs().max())


@pytest.mark.parametrize("read", [token_by_token, in_two_pieces])
@pytest.mark.parametrize("scheme", [None, "cycle", "pair"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_hidden_states_and_cache_are_those_of_the_long_way(tmp_path, shape, scheme, read):
    base = tiny_base(tmp_path, **shape)
    lora = None if scheme is None else frozen_lora(base, scheme)
    decoder = Decoder(base, backward="fp32")
    got, cache = read(decoder, lora)
    expected, expected_cache = read(long_way(decoder), lora)
    limit = largest_difference(base, expected)
    assert (got - expected).abs().max() <= limit
    for ours, theirs in ((cache.keys, expected_cache.keys), (cache.values, expected_cache.values)):
        assert (ours - theirs).abs().max() <= 2 * limit
    assert cache.length == TOKENS.shape[1]


@torch.no_grad()
def test_several_texts_pass_together_without_a_cache(tmp_path):
    base = tiny_base(tmp_path)
    decoder = Decoder(base, backward="fp32")
    texts = np.concatenate([TOKENS, TOKENS[:, ::-1]])
    got = decoder.hidden(texts)
    expected = long_way(decoder).hidden(texts)
    assert (got - expected).abs().max() <= largest_difference(base, expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rounded_attention_and_activations_move_a_layer_less_than_int8_does(tmp_path, shape):
    base = tiny_base(tmp_path, **shape)
    a = base.architecture
    layer = layer_of(base)
    rng = torch.Generator().manual_seed(1)
    h = torch.randn(2, 40, a.hidden_size, generator=rng)
    angles = torch.randn(2, 40, a.head_size // 2, generator=rng)
    turned = {"cos": angles[0], "sin": angles[1]}
    exact, rounded = (layer.projections(h, dtype) for dtype in (torch.float32, torch.bfloat16))
    for projections in (exact, rounded):
        layer.project(h, NO_ADAPTERS, **turned, to=projections)
    assert all(torch.equal(x.to(torch.bfloat16), y) for x, y in zip(exact, rounded, strict=True))
    attention = torch.randn(2, 40, a.heads, a.head_size, generator=rng).to(torch.bfloat16)
    after, after_rounding = h.clone(), h.clone()
    layer.complete(after, NO_ADAPTERS, attention.float())
    layer.complete(after_rounding, NO_ADAPTERS, attention)
    # Rows of which the largest element is four times the usual one lose 0.9 % to eight bits.
    assert (after - after_rounding).norm() <= 2**-6 * (after - h).norm()


@torch.no_grad()
def test_a_long_text_goes_on_from_a_cache(tmp_path):
    decoder = Decoder(tiny_base(tmp_path, max_context=128), backward="int8")
    # As on a processor with AMX, whatever this one has.
    decoder._rounds_attention = True
    tokens = np.random.default_rng(7).integers(0, 264, (1, 2 * BFLOAT16_TOKENS))
    cache = KeyValueCache(decoder.architecture, sequences=1, tokens=tokens.size)
    halves = [decoder.hidden(half, cache=cache) for half in np.split(tokens, 2, axis=1)]
    whole = decoder.hidden(tokens)
    assert (torch.cat(halves, 1) - whole).norm() <= 2**-5 * whole.norm()


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


def layer_of(base: Base) -> FrozenLayer:
    a = base.architecture
    norms = ("attn_norm", "ffn_norm", *(("attn_sub_norm", "ffn_sub_norm") if a.sub_norms else ()))
    return FrozenLayer(
        {name: base.planes(f"layers.0.{name}") for name in LINEARS},
        {name: torch.tensor(base.vector(f"layers.0.{name}")) for name in norms},
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
        ({"h": torch.zeros(48, dtype=torch.float64)}, TypeError, "torch.float64, torch.float32 is needed"),
        ({"keys": torch.zeros(3, 2, 16).transpose(0, 1)}, ValueError, "not contiguous"),
        ({"adapter": [NO_ADAPTER]}, ValueError, "an adapter has 7 linears"),
    ],
    ids=["cache full", "before the cache", "other type", "strides", "adapter too short"],
)
def test_what_a_native_call_cannot_read_is_refused(tmp_path, changes, error, why):
    arguments = {
        "h": torch.zeros(48),
        "adapter": NO_ADAPTERS,
        "cos": torch.ones(8),
        "sin": torch.zeros(8),
        "keys": torch.zeros(2, 3, 16),
        "values": torch.zeros(2, 3, 16),
        "length": 0,
    }
    with pytest.raises(error, match=why):
        layer_of(tiny_base(tmp_path)).pass_token(**(arguments | changes))
