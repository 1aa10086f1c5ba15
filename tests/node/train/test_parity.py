"""Loss and every gradient of the adapter equal those of the plain PyTorch model, in shapes drawn at random.

The plain model (tests/node/train/plain.py) runs in float64 on the same weights, with BitNet's arithmetic and
straight-through gradients. Where the tolerances come from, all as shares of the gradient's norm:

* float32: in each layer a gradient passes seven products of up to n terms forward, as many backward, and
  about 32 other operations each way. Every one rounds to EPSILON of what it sums; errors of sums are random
  and grow with the square root of their terms: EPSILON * layers * (64 + 14 * sqrt(n)).
  With two planes each product is two, and their sum a third operation; scales of rows and groups are one
  more operation each: EPSILON * layers * (64 + planes * (14 * sqrt(n) + 14)).
* two limbs: each of the seven backward products of a layer rounds the elements of a row by at most half a
  step, 1 / (127 * 256) of its largest, which is at most its norm: layers * 7 * sqrt(n) / 2 / (127 * 256).
* one limb: an element is rounded by chance to one of its two neighbours, which are a step, 1/127 of its
  row's largest, apart: off by at most half a step in the root of the mean square, and by nothing in the mean.
  Independent errors add up as squares, and three times their root is allowed: 3 * sqrt(layers * 7 * n) / 2 /
  127. Planes may round a row the same way; then their errors add up as they are: times the planes.
* kept in bfloat16: each layer reads four kept values (two norms, two sub-norms), and gets the gradients of
  gate and up, each wrong by at most 2^-8 of itself; a norm uses its input twice: layers * 12 * 2^-8. Gate and
  up themselves are rounded in the plain model too.
* flips: an activation on the boundary of two int8 codes, or of two numbers in bfloat16, may round one way in
  float32 and the other way in float64. It then differs by a step, up to 1/127 of its row, and others behind
  it may follow. The hidden states show it: where they agree to float32's rounding, nothing flipped; else two
  whole steps are allowed.
"""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sterna.train.lora import Lora
from sterna.train.loss import Head, cross_entropy
from sterna.train.model import KEEP_ALL, Decoder, Keeping
from sterna_protocol.merge.scheme import delta_parts, delta_size
from tests.node.train import plain
from tests.node.train.tiny import scheme_for, tiny_base

EPSILON = float(np.finfo(np.float32).eps)
FLIPPED = 2 / 127


@st.composite
def shapes(draw):
    kv_heads = draw(st.integers(1, 3))
    return {
        "hidden_size": draw(st.integers(8, 90)),
        "layers": draw(st.integers(1, 3)),
        "heads": kv_heads * draw(st.integers(1, 3)),
        "kv_heads": kv_heads,
        "head_size": 2 * draw(st.integers(1, 12)),
        "ffn_size": draw(st.integers(8, 150)),
        "activation": draw(st.sampled_from(["relu2", "silu"])),
        "sub_norms": draw(st.booleans()),
        "gated": draw(st.booleans()),
        "tied_embeddings": draw(st.booleans()),
        "rope_theta": draw(st.sampled_from([1e4, 5e5])),
    }


def of_both(base, *, rank, scheme, sequences, length, backward, keeping):
    """(hidden states, loss, gradient) of our model and of the plain one."""
    rng = np.random.default_rng(7)
    a = base.architecture
    inputs = rng.integers(0, a.vocab_size, (sequences, length))
    targets = rng.integers(0, a.vocab_size, (sequences, length))
    charter = scheme_for(a, scheme=scheme, rank=rank, subspaces=2)
    state = (rng.normal(size=(charter.subspaces, delta_size(charter))) * 0.05).astype(np.float32)

    lora = Lora(charter, state, trained=0)
    hidden = Decoder(base, backward=backward).hidden(inputs, lora=lora, keeping=keeping)
    loss = cross_entropy(hidden, targets, Head(base.head))
    loss.backward()

    factors = plain.factors(charter, state)
    plain_hidden = plain.hidden(base, inputs, factors, float(charter.scale), rounded=keeping.rounded)
    logits = plain_hidden @ plain.head_rows(base).T
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.from_numpy(targets).flatten(), reduction="sum"
    )
    expected.backward()
    pieces = [
        factors[part.name][0].grad[:rank] if part.matrix == "a" else factors[part.name][1].grad[:, :rank]
        for part in delta_parts(charter)
    ]
    return (
        (hidden.detach(), loss.item(), lora.gradient.double()),
        (plain_hidden.detach(), expected.item(), torch.cat([piece.flatten() for piece in pieces])),
    )


CASES = {
    "fp32": ("fp32", KEEP_ALL),
    "fp32, recomputed": ("fp32", Keeping(recomputed=2)),
    "int8x2": ("int8x2", KEEP_ALL),
    "int8x2, kept in bfloat16": ("int8x2", Keeping(rounded=True, recomputed=1)),
    "int8": ("int8", KEEP_ALL),
}


def tolerance(base, *, backward="fp32", rounded=False) -> float:
    """How far the whole gradient may be off, as a share of its norm; see the top of this file."""
    a = base.architecture
    planes = len(base.planes("layers.0.q"))
    widest = max(a.hidden_size, a.ffn_size, a.heads * a.head_size)
    share = EPSILON * (64 + planes * (14 * widest**0.5 + 14))
    if backward == "int8x2":
        share += planes * 7 * widest**0.5 / 2 / (127 * 256)
    if rounded:
        share += 12 * 2.0**-8
    by_chance = 3 * planes * (a.layers * 7 * widest) ** 0.5 / 2 / 127 if backward == "int8" else 0
    return a.layers * share + by_chance


def check(base, case, **facts):
    backward, keeping = CASES[case]
    (hidden, loss, gradient), (plain_hidden, plain_loss, plain_gradient) = of_both(
        base, backward=backward, keeping=keeping, **facts
    )
    exact = tolerance(base)
    whole = tolerance(base, backward=backward, rounded=keeping.rounded)
    if (hidden - plain_hidden).norm() > exact * plain_hidden.norm():
        exact, whole = exact + FLIPPED, whole + FLIPPED
    assert abs(loss - plain_loss) <= exact * plain_loss
    assert (gradient - plain_gradient).norm() <= whole * plain_gradient.norm()


@pytest.mark.parametrize("case", CASES)
@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    shape=shapes(),
    rank=st.integers(1, 9),
    scheme=st.sampled_from(["fixed", "cycle", "pair"]),
    sequences=st.integers(1, 3),
    length=st.integers(2, 40),
)
def test_loss_and_gradient_equal_plain_torch(tmp_path, case, shape, rank, scheme, sequences, length):
    base = tiny_base(tmp_path, **shape)
    check(base, case, rank=rank, scheme=scheme, sequences=sequences, length=length)


@st.composite
def shapes_of_groups(draw):
    """Shapes whose rows are whole groups of 64 columns."""
    return draw(shapes()) | {
        "hidden_size": 64 * draw(st.integers(1, 3)),
        "heads": 4,
        "kv_heads": draw(st.sampled_from([1, 2, 4])),
        "head_size": 16 * draw(st.integers(1, 3)),
        "ffn_size": 64 * draw(st.integers(1, 4)),
    }


@pytest.mark.parametrize("case", ["fp32", "int8x2", "int8"])
@pytest.mark.parametrize("scales", ["row", "group", "planes"])
@settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(shape=shapes_of_groups(), length=st.integers(2, 40))
def test_so_they_do_with_scales_of_rows_and_groups_and_with_two_planes(tmp_path, case, scales, shape, length):
    base = tiny_base(tmp_path, scales=scales, **shape)
    check(base, case, rank=4, scheme="cycle", sequences=2, length=length)


DRAWS = 16


@pytest.mark.parametrize("scales", ["matrix", "row", "group", "planes"])
@settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(shape=shapes_of_groups(), length=st.integers(2, 20))
def test_one_limb_is_right_in_the_mean(tmp_path, scales, shape, length):
    """The mean of 16 independent errors of mean zero is a quarter of one in norm; a bias would not shrink."""
    base = tiny_base(tmp_path, scales=scales, **shape)
    rng = np.random.default_rng(7)
    inputs, targets = rng.integers(0, base.architecture.vocab_size, (2, 1, length))
    charter = scheme_for(base.architecture)
    state = (rng.normal(size=(charter.subspaces, delta_size(charter))) * 0.05).astype(np.float32)

    def gradient(backward, factor):
        lora = Lora(charter, state, trained=0)
        hidden = Decoder(base, backward=backward).hidden(inputs, lora=lora)
        (cross_entropy(hidden, targets, Head(base.head)) * factor).backward()
        return lora.gradient.double() / factor

    # Chance comes from the gradient's own bits: another factor is another draw.
    errors = torch.stack([gradient("int8", 1 + draw / 64) for draw in range(DRAWS)]) - gradient("fp32", 1.0)
    assert errors.mean(0).norm() <= errors.norm() / DRAWS**0.5 / 2
