"""The row operations equal their formulas in float64, values and gradients, in every length and type."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from sterna_kernels.torch_rows import (
    Shelf,
    as_it_is,
    gated,
    in_bfloat16,
    rms_norm,
    rms_norm_beside,
    rotated,
)

EPSILON = float(np.finfo(np.float32).eps)
KEEP = {False: as_it_is, True: in_bfloat16}
ROUNDING = {False: 0.0, True: 2.0**-8}
EPS = 1e-5

# Around the 64 lanes of a sum and the vectors of every level of x86-64.
LENGTHS = [2, 3, 7, 8, 16, 31, 63, 64, 65, 127, 200]
ACTIVATIONS = {"relu2": lambda x: F.relu(x) ** 2, "silu": F.silu}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain_norm(x: Tensor, w: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * w


def gradients(y: Tensor, inputs: list[Tensor], g: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y, inputs, g.to(y.dtype))


def close(got: Tensor, expected: Tensor, *, rounded: bool, scale: float) -> bool:
    """A result goes through about 32 roundings (three factors 1 / rms of
    four each, products, differences) and two sums of n terms, none larger than ``scale``; with kept
    values in bfloat16 each of at most four factors is wrong by 2^-8 of itself.
    """
    n = expected.shape[-1]
    limit = (EPSILON * (32 + 2 * n) + 4 * ROUNDING[rounded]) * scale
    return bool((got.double() - expected).abs().max() <= limit)


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("n", LENGTHS)
def test_the_norm_and_its_gradient(n, rounded):
    x, w, g = drawn(5, n), drawn(n, seed=1), drawn(5, n, seed=2)
    exact = x.double().requires_grad_()
    expected = plain_norm(exact, w.double())
    (d_expected,) = gradients(expected, [exact], g)
    x.requires_grad_()
    y = rms_norm(x, w, EPS, keep=KEEP[rounded])
    assert close(y.detach(), expected.detach(), rounded=False, scale=float(expected.detach().abs().max()))
    # dx is the difference of two terms, each up to |g| |w| / rms(x) times the row's largest over its rms.
    size = float((g * w).abs().max() / x.detach().square().mean(-1).sqrt().min())
    size *= float((x.detach().abs().amax(1) / x.detach().square().mean(-1).sqrt()).max()) ** 2
    assert close(gradients(y, [x], g)[0], d_expected, rounded=rounded, scale=size)
    h, beside = rms_norm_beside(x, w, EPS, keep=KEEP[rounded])
    assert torch.equal(h, x)
    assert torch.equal(beside, y)
    (both,) = torch.autograd.grad((h, beside), x, (g, g))
    assert close(both, d_expected + g, rounded=rounded, scale=size + float(g.abs().max()))


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("n", LENGTHS)
def test_the_gated_activation_and_its_gradients(n, act, normed, rounded):
    gate, up, g = drawn(4, n), drawn(4, n, seed=1), drawn(4, n, seed=2)
    w = drawn(n, seed=3) if normed else None
    exact = [gate.double().requires_grad_(), up.double().requires_grad_()]
    product = ACTIVATIONS[act](exact[0]) * exact[1]
    expected = plain_norm(product, w.double()) if normed else product
    wanted = gradients(expected, exact, g)
    inputs = [gate.requires_grad_(), up.requires_grad_()]
    y = gated(act, *inputs, w, EPS, keep=KEEP[rounded])
    assert close(y.detach(), expected.detach(), rounded=False, scale=float(expected.detach().abs().max()))
    rms = (product.detach().square().mean(-1) + EPS).sqrt()
    size = 1.0
    if normed:
        size = float(w.abs().max() / rms.min() * (product.detach().abs().amax(1) / rms).max() ** 2)
    size *= float(g.abs().max()) * max(1.0, float(gate.detach().abs().max())) ** 2
    size *= max(1.0, float(up.detach().abs().max()))
    for got, want in zip(gradients(y, inputs, g), wanted, strict=True):
        assert close(got, want, rounded=rounded, scale=2 * size)


def test_rows_in_bfloat16_are_read_as_they_are():
    gate, up, w = drawn(3, 70).bfloat16(), drawn(3, 70, seed=1).bfloat16(), drawn(70, seed=2)
    assert torch.equal(rms_norm(gate, w, EPS), rms_norm(gate.float(), w, EPS))
    for act in ACTIVATIONS:
        assert torch.equal(gated(act, gate, up, w, EPS), gated(act, gate.float(), up.float(), w, EPS))


@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 3), st.integers(1, 20), st.booleans())
def test_the_rotation_turns_and_its_gradient_turns_back(b, t, h, half, to_bfloat16):
    x, g = drawn(b, t, h, 2 * half), drawn(b, t, h, 2 * half, seed=1)
    angles = drawn(t, half, seed=2)
    cos, sin = angles.cos(), angles.sin()
    first, second = x.double().chunk(2, -1)
    c, s = cos.double()[:, None], sin.double()[:, None]
    expected = torch.cat((first * c - second * s, second * c + first * s), -1)
    dtype = torch.bfloat16 if to_bfloat16 else torch.float32
    x.requires_grad_()
    y = rotated(x, cos, sin, dtype=dtype)
    assert y.dtype is dtype
    limit = (4 * EPSILON + ROUNDING[to_bfloat16]) * 2 * float(x.detach().abs().max())
    assert (y.detach().double() - expected).abs().max() <= limit
    (back,) = torch.autograd.grad(y, x, g.to(dtype))
    (turned,) = torch.autograd.grad(rotated(back.requires_grad_(), cos, sin).sum(), back)
    assert torch.isfinite(turned).all()
    once_more = rotated(back.detach(), cos, sin)
    assert (once_more - g.to(dtype).float()).abs().max() <= 16 * EPSILON * float(g.abs().max())


def test_a_shelf_holds_rounded_copies_side_by_side_and_more_than_fit_beside_it():
    shelf, first, second = Shelf(100), drawn(6, 10), drawn(5, 10, seed=1)
    kept = [shelf.keep(first), shelf.keep(first[:4]), shelf.keep(second)]
    for copy, original in zip(kept, (first, first[:4], second), strict=True):
        assert torch.equal(copy, original.bfloat16())
    assert kept[1].data_ptr() == kept[0].data_ptr() + 2 * 60
    assert kept[2].untyped_storage().data_ptr() != kept[0].untyped_storage().data_ptr()
    assert shelf.keep(kept[0]) is kept[0]


def test_no_rows_give_no_rows():
    assert rms_norm(torch.zeros(0, 8), torch.ones(8), EPS).shape == (0, 8)
    assert gated("silu", torch.zeros(2, 0, 8), torch.zeros(2, 0, 8), None, EPS).shape == (2, 0, 8)


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="float32 or bfloat16"):
        rms_norm(torch.zeros(2, 8, dtype=torch.float64), torch.ones(8), EPS)
