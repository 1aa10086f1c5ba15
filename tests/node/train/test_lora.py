"""The adapter in the model: its matrices are the protocol's, its gradients those of plain torch."""

import numpy as np
import pytest
import torch

from sterna.train.lora import Lora, float_state, lora_of_round
from sterna.train.loss import Head, cross_entropy
from sterna.train.model import KEEP_ALL, Decoder, Keeping
from sterna_kernels.torch import TernaryLinear
from sterna_protocol.merge.adapter import Adapter, genesis_adapter, lora_factors
from sterna_protocol.merge.scheme import delta_parts, delta_size
from tests.node.train import plain
from tests.node.train.tiny import charter_for, scheme_for, tiny_base

EPSILON = float(np.finfo(np.float32).eps)
TOKENS = np.random.default_rng(5).integers(0, 264, (2, 17))
TARGETS = np.random.default_rng(6).integers(0, 264, (2, 17))


def random_state(scheme, *, seed=0, rows=None) -> np.ndarray:
    state = np.random.default_rng(seed).normal(size=(scheme.subspaces, delta_size(scheme))) * 0.05
    if rows is not None:
        state[[row for row in range(scheme.subspaces) if row not in rows]] = 0
    return state.astype(np.float32)


def gradient_of(base, lora: Lora, *, backward="fp32", keeping=KEEP_ALL) -> torch.Tensor:
    decoder = Decoder(base, backward=backward)
    lora.gradient.zero_()
    cross_entropy(decoder.hidden(TOKENS, lora=lora, keeping=keeping), TARGETS, Head(base.head)).backward()
    return lora.gradient.clone()


def plain_gradient(base, scheme, state, trained: int) -> torch.Tensor:
    """The gradient of the trained subspace's parts, laid out as the state is."""
    factors = plain.factors(scheme, state)
    logits = plain.hidden(base, TOKENS, factors, float(scheme.scale)) @ plain.head_rows(base).T
    torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.from_numpy(TARGETS).flatten(), reduction="sum"
    ).backward()
    own = slice(trained * scheme.rank, (trained + 1) * scheme.rank)
    pieces = [
        factors[part.name][0].grad[own] if part.matrix == "a" else factors[part.name][1].grad[:, own]
        for part in delta_parts(scheme)
    ]
    return torch.cat([piece.flatten() for piece in pieces])


@pytest.mark.parametrize("scheme", ["fixed", "cycle", "pair"])
def test_the_matrices_are_those_of_the_protocol(tmp_path, scheme):
    base = tiny_base(tmp_path)
    charter = charter_for(base.architecture, scheme=scheme)
    rng = np.random.default_rng(0)
    state = genesis_adapter(charter).state + rng.integers(
        -(2**20), 2**20, genesis_adapter(charter).state.shape
    )
    adapter = Adapter(state.astype(np.int32))
    theirs = lora_factors(charter, adapter)
    ours = plain.factors(charter.adapter, float_state(adapter))
    used = Lora(charter.adapter, float_state(adapter), trained=None)
    for name, (a, b) in theirs.items():
        assert np.array_equal(ours[name][0].detach().numpy(), a)
        assert np.array_equal(ours[name][1].detach().numpy(), b)
        x = torch.from_numpy(rng.normal(size=(3, a.shape[1])).astype(np.float32))
        linear = TernaryLinear(base.planes(name)[0])
        expected = charter.adapter.scale * (x @ torch.from_numpy(a).T) @ torch.from_numpy(b).T + linear(x)
        assert torch.allclose(used.applied(name, linear, x), expected, rtol=1e-5, atol=1e-5)


def test_a_fresh_adapter_changes_nothing(tmp_path):
    base = tiny_base(tmp_path)
    decoder = Decoder(base, backward="fp32")
    for scheme in ("fixed", "cycle", "pair"):
        charter = charter_for(base.architecture, scheme=scheme)
        lora = lora_of_round(charter.adapter, float_state(genesis_adapter(charter)), 0)
        assert torch.equal(decoder.hidden(TOKENS, lora=lora), decoder.hidden(TOKENS))


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("scheme", ["fixed", "cycle", "pair"])
def test_the_forward_pass_equals_the_plain_formulas(tmp_path, scheme, trained):
    base = tiny_base(tmp_path)
    charter = scheme_for(base.architecture, scheme=scheme)
    # With some seeds a sum's last bit puts an activation on the other side of a half.
    state = random_state(charter, seed=1)
    row = charter.subspaces - 1
    lora = Lora(charter, state, trained=row if trained else None)
    got = Decoder(base, backward="fp32").hidden(TOKENS, lora=lora)
    expected = plain.hidden(base, TOKENS, plain.factors(charter, state), float(charter.scale)).detach()
    # The bound of test_model, doubled for the adapter's own sums.
    limit = 2 * EPSILON * base.architecture.layers * (16 + 4 * 80**0.5) * float(expected.abs().max())
    assert (got - expected).abs().max() <= limit


@pytest.mark.parametrize("rows", [None, (0,), ()], ids=["all used", "one other used", "none used"])
@pytest.mark.parametrize("scheme", ["fixed", "cycle", "pair"])
def test_gradients_equal_plain_torch(tmp_path, scheme, rows):
    base = tiny_base(tmp_path)
    charter = scheme_for(base.architecture, scheme=scheme)
    state = random_state(charter, rows=rows)
    trained = charter.subspaces - 1
    expected = plain_gradient(base, charter, state, trained)
    got = gradient_of(base, Lora(charter, state, trained=trained))
    assert (got - expected).norm() <= 1e3 * EPSILON * expected.norm()


def test_two_limbs_of_int8_in_the_backward_pass_are_close_and_one_is_usable(tmp_path):
    base = tiny_base(tmp_path)
    charter = scheme_for(base.architecture)
    state = random_state(charter)
    expected = plain_gradient(base, charter, state, 0)
    for backward, digits, steps in (("int8x2", 127 * 256, 0.5), ("int8", 127, 1)):
        error = gradient_of(base, Lora(charter, state, trained=0), backward=backward) - expected
        # Each of the 14 products rounds its gradient by at most half a step of the row's largest value, or
        # a whole one by chance; largest over root mean square of a row is below 6 here.
        assert error.norm() <= 14 * 6 * steps / digits * expected.norm()


def test_recomputing_layers_gives_the_same_gradient(tmp_path):
    base = tiny_base(tmp_path)
    charter = scheme_for(base.architecture)
    gradients = [
        gradient_of(base, Lora(charter, random_state(charter), trained=1), keeping=Keeping(recomputed=layers))
        for layers in range(3)
    ]
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


def test_new_values_are_used_once_the_optimiser_has_moved_them(tmp_path):
    base = tiny_base(tmp_path)
    for scheme in ("fixed", "cycle", "pair"):
        charter = scheme_for(base.architecture, scheme=scheme)
        state = random_state(charter)
        lora = Lora(charter, state, trained=0)
        lora.values += 0.01
        lora.values_changed()
        moved = state.copy()
        moved[0] = lora.values.numpy()
        decoder = Decoder(base, backward="fp32")
        again = decoder.hidden(TOKENS, lora=Lora(charter, moved, trained=0))
        assert torch.equal(decoder.hidden(TOKENS, lora=lora), again)


def test_a_state_of_another_shape_is_refused(tmp_path):
    base = tiny_base(tmp_path)
    charter = scheme_for(base.architecture)
    with pytest.raises(ValueError, match=r"the scheme has \(3, "):
        Lora(charter, np.zeros((2, delta_size(charter)), np.float32), trained=None)
