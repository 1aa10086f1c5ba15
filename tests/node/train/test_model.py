"""The decoder equals its formulas and transformers' BitNet, whole, cached or recomputed."""

import numpy as np
import pytest
import torch

import sterna_kernels
from sterna.train.lora import Lora
from sterna.train.loss import Head, cross_entropy
from sterna.train.model import BFLOAT16_TOKENS, Decoder, Keeping, KeyValueCache, _Pass
from sterna_kernels.torch_attention import attends as of_the_kernels
from sterna_kernels.torch_rows import as_it_is, in_bfloat16
from sterna_protocol.merge.scheme import delta_size
from tests.node.train import plain
from tests.node.train.tiny import scheme_for, tiny_base

EPSILON = float(np.finfo(np.float32).eps)

SHAPES = [
    {},
    {"activation": "silu"},
    {"sub_norms": False, "activation": "silu"},
    {"gated": False},
    {"kv_heads": 4, "layers": 1},
    {"kv_heads": 1, "head_size": 10, "hidden_size": 33, "ffn_size": 7, "tied_embeddings": False},
]


def bound(base, values: torch.Tensor) -> float:
    """How far float32 may be from float64 as long as no activation code flips.

    A value passes about 16 rounded operations a layer on its longest way, and each sum over n terms adds
    sqrt(n) roundings; errors are relative to the largest value. One flipped int8 code would show as about
    1/127 of a value, a hundred times this.
    """
    a = base.architecture
    widest = max(a.hidden_size, a.ffn_size, a.heads * a.head_size)
    return EPSILON * a.layers * (16 + 4 * widest**0.5) * float(values.abs().max())


def tokens_for(base, *, sequences=3, length=19, seed=0):
    return np.random.default_rng(seed).integers(0, base.architecture.vocab_size, (sequences, length))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_hidden_states_equal_the_plain_formulas(tmp_path, shape):
    base = tiny_base(tmp_path, **shape)
    tokens = tokens_for(base)
    got = Decoder(base, backward="fp32").hidden(tokens)
    expected = plain.hidden(base, tokens)
    assert (got - expected).abs().max() <= bound(base, expected)


def test_logits_equal_those_of_the_dequantised_head(tmp_path):
    for tied in (True, False):
        base = tiny_base(tmp_path, tied_embeddings=tied)
        h = torch.randn(5, base.architecture.hidden_size, generator=torch.Generator().manual_seed(0))
        expected = h.double() @ plain.head_rows(base).T
        error = (Head(base.head).logits(h) - expected).abs().max()
        assert error <= EPSILON * base.architecture.hidden_size * expected.abs().max()


def test_no_token_sees_a_later_one(tmp_path):
    base = tiny_base(tmp_path)
    tokens = tokens_for(base)
    changed = tokens.copy()
    changed[:, 11:] = (changed[:, 11:] + 1) % base.architecture.vocab_size
    decoder = Decoder(base, backward="fp32")
    before, after = decoder.hidden(tokens), decoder.hidden(changed)
    assert torch.equal(before[:, :11], after[:, :11])
    assert not torch.equal(before[:, 11:], after[:, 11:])


@torch.no_grad()
@pytest.mark.parametrize("sequences", [1, 2])
@pytest.mark.parametrize("pieces", [[19], [1] * 19, [7, 1, 1, 10], [18, 1]], ids=str)
def test_reading_in_pieces_with_a_cache_equals_reading_at_once(tmp_path, pieces, sequences):
    base = tiny_base(tmp_path)
    tokens = tokens_for(base, sequences=sequences)
    decoder = Decoder(base, backward="fp32")
    whole = decoder.hidden(tokens)
    cache = KeyValueCache(base.architecture, sequences=sequences, tokens=19)
    parts, start = [], 0
    for piece in pieces:
        parts.append(decoder.hidden(tokens[:, start : start + piece], cache=cache))
        start += piece
    assert cache.length == 19
    assert (torch.cat(parts, 1) - whole).abs().max() <= bound(base, whole)


def test_more_tokens_than_context_or_cache_are_refused(tmp_path):
    base = tiny_base(tmp_path)
    decoder = Decoder(base, backward="fp32")
    with pytest.raises(ValueError, match="65 tokens, there is room for 64"):
        decoder.hidden(tokens_for(base, length=65))
    cache = KeyValueCache(base.architecture, sequences=1, tokens=4)
    decoder.hidden(tokens_for(base, sequences=1, length=3), cache=cache)
    with pytest.raises(ValueError, match="5 tokens, there is room for 4"):
        decoder.hidden(tokens_for(base, sequences=1, length=2), cache=cache)


@pytest.mark.slow
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what the import brings along
def test_logits_equal_those_of_transformers_bitnet(tmp_path, monkeypatch, theta):
    # The library compiles its activation rounding at first use; eager gives the same numbers at once.
    monkeypatch.setattr(torch, "compile", lambda function: function)
    from transformers import BitNetConfig, BitNetForCausalLM
    from transformers.integrations.bitnet import AutoBitLinear

    base = tiny_base(tmp_path, rope_theta=theta)
    a = base.architecture
    config = BitNetConfig(
        vocab_size=a.vocab_size,
        hidden_size=a.hidden_size,
        intermediate_size=a.ffn_size,
        num_hidden_layers=a.layers,
        num_attention_heads=a.heads,
        num_key_value_heads=a.kv_heads,
        head_dim=a.head_size,
        hidden_act="relu2",
        max_position_embeddings=a.max_context,
        rms_norm_eps=a.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        tie_word_embeddings=True,
    )
    theirs = BitNetForCausalLM(config).eval().requires_grad_(False)
    names = {"attn_norm": "input_layernorm", "attn_sub_norm": "self_attn.attn_sub_norm"}
    names |= {"ffn_norm": "post_attention_layernorm", "ffn_sub_norm": "mlp.ffn_sub_norm"}
    for name, out, in_ in a.linears():
        _, layer, short = name.split(".")
        linear = AutoBitLinear(in_, out, bias=False, online_quant=False)
        linear.weight.data = torch.from_numpy(base.planes(name)[0].codes()).float()
        linear.weight_scale.data = torch.tensor([base.planes(name)[0].scale])
        block = "self_attn" if short in "qkvo" else "mlp"
        theirs.set_submodule(f"model.layers.{layer}.{block}.{short}_proj", linear)
    for layer in range(a.layers):
        for ours, their in names.items():
            norm = theirs.get_submodule(f"model.layers.{layer}.{their}")
            norm.weight.data = torch.tensor(base.vector(f"layers.{layer}.{ours}"))
    theirs.model.norm.weight.data = torch.tensor(base.vector("final_norm"))
    theirs.model.embed_tokens.weight.data = plain.head_rows(base).float()
    theirs.tie_weights()

    tokens = tokens_for(base, seed=3)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits
        got = Head(base.head).logits(Decoder(base, backward="fp32").hidden(tokens).flatten(0, 1))
    assert (got.view_as(expected) - expected).abs().max() <= 2 * bound(base, expected)


def test_a_model_learns_the_same_with_an_attention_of_the_kernels(tmp_path, monkeypatch):
    """Both run in bfloat16: what goes in, weights, results and all their gradients are rounded in both."""
    base = tiny_base(tmp_path, head_size=32, layers=2, max_context=128)
    scheme = scheme_for(base.architecture)
    state = np.random.default_rng(0).normal(size=(3, delta_size(scheme))).astype(np.float32) * 0.05
    tokens, taken = tokens_for(base, sequences=2, length=BFLOAT16_TOKENS + 9), []

    def gradient(attends_too: bool) -> torch.Tensor:
        def attends(*qkv: torch.Tensor) -> bool:
            taken.append(attends_too and of_the_kernels(*qkv))
            return taken[-1]

        monkeypatch.setattr("sterna.train.model.attends", attends)
        lora = Lora(scheme, state, trained=0)
        decoder = Decoder(base, backward="int8x2")
        decoder._rounds_attention = True
        hidden = decoder.hidden(tokens, lora=lora, keeping=Keeping(rounded=True, recomputed=1))
        cross_entropy(hidden, tokens, Head(base.head)).backward()
        return lora.gradient.double()

    before = sterna_kernels.variant()
    try:
        sterna_kernels.use_variant("amx-emulated")
    except ValueError:
        pytest.skip("the emulated tiles need AVX-512")
    try:
        ours, theirs = gradient(True), gradient(False)
    finally:
        sterna_kernels.use_variant(before)
    assert any(taken)
    assert (ours - theirs).norm() <= base.architecture.layers * 16 * 2**-8 * theirs.norm()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch.compile does with autograd classes
@pytest.mark.parametrize("keep", [as_it_is, in_bfloat16])
def test_a_layer_with_its_adapter_is_one_graph_for_torch_compile(tmp_path, keep):
    base = tiny_base(tmp_path)
    scheme = scheme_for(base.architecture, scheme="fixed")
    state = np.random.default_rng(0).normal(size=(1, delta_size(scheme))) * 0.05
    lora = Lora(scheme, state.astype(np.float32), trained=0)
    decoder = Decoder(base, backward="int8x2")
    pass_ = _Pass(*decoder._rotation(0, 9), lora, None, attention=torch.float32, keep=keep)
    h = torch.randn(2, 9, base.architecture.hidden_size, generator=torch.Generator().manual_seed(0))
    h.requires_grad_()

    def layer(x):
        return decoder._layer(0, x, pass_)

    # This backend traces the whole graph, forward and backward, and compiles no C++.
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    plainly, traced = layer(h), compiled(h)
    assert torch.equal(plainly, traced)
    (expected,), (got,) = (torch.autograd.grad(y.sum(), h) for y in (plainly, traced))
    assert torch.equal(expected, got)
