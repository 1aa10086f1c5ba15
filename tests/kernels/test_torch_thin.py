"""A product of low rank added on the way out: the bits of the NumPy product, in either type."""

import numpy as np
import pytest
import torch

from sterna_kernels import TernaryMatrix, matmul, matmul_t
from sterna_kernels.torch import TernaryLinear
from sterna_kernels.torch_thin import product, product_t, weights_of

# Results that are large enough leave past the caches.
SMALL, LARGE = (5, 40, 70), (130, 2048, 96)


def drawn(rng, m, n, k, rank=3):
    w = TernaryMatrix.from_codes(rng.integers(-1, 2, (n, k), np.int8), 0.37)
    shapes = (m, k), (m, rank), (rank, n), (m, n), (rank, k)
    return w, *(rng.standard_normal(shape, np.float32) for shape in shapes)


def tensors(*arrays):
    return tuple(map(torch.from_numpy, arrays))


@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_the_operators_return_the_bits_of_the_numpy_products(variant, rng, shape):
    w, x, left, right, g, right_t = drawn(rng, *shape)
    weights = weights_of(TernaryLinear(w))
    y = product(*tensors(x), weights, *tensors(left, right))
    np.testing.assert_array_equal(y.numpy(), matmul(x, w, thin=(left, right)))
    for backward, limbs in (("int8", 1), ("int8x2", 2)):
        dx = product_t(*tensors(g), weights, *tensors(left, right_t), backward=backward)
        np.testing.assert_array_equal(dx.numpy(), matmul_t(g, w, limbs=limbs, thin=(left, right_t)))


@pytest.mark.parametrize("shape", [SMALL, LARGE, (1, 40, 70)])
def test_a_bfloat16_result_is_the_float32_result_rounded_once(variant, rng, shape):
    w, x, left, right, *_ = drawn(rng, *shape)
    weights = weights_of(TernaryLinear(w))
    rounded = product(*tensors(x), weights, *tensors(left, right), to_bfloat16=True)
    assert torch.equal(rounded, product(*tensors(x), weights, *tensors(left, right)).to(torch.bfloat16))


def test_the_fp32_backward_adds_it_too(rng):
    w, _, left, _, g, right_t = drawn(rng, *SMALL)
    dx = product_t(*tensors(g), weights_of(TernaryLinear(w)), *tensors(left, right_t), backward="fp32")
    exact = (g.astype(np.float64) @ w.codes()) * np.float32(0.37) + left.astype(np.float64) @ right_t
    np.testing.assert_allclose(dx.numpy(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("part", ["x", "left", "right"])
def test_parts_of_another_shape_or_type_are_named(rng, part):
    w, x, left, right, *_ = drawn(rng, *SMALL)
    weights, parts = weights_of(TernaryLinear(w)), {"x": x, "left": left, "right": right}
    for wrong, error in ((parts[part][:, :-1], ValueError), (parts[part].astype(np.float64), TypeError)):
        given = {name: torch.from_numpy(wrong if name == part else array) for name, array in parts.items()}
        with pytest.raises(error, match=part):
            product(given["x"], weights, given["left"], given["right"])


def test_numpy_factors_that_do_not_fit_are_named(rng):
    w, x, left, right, *_ = drawn(rng, *SMALL)
    with pytest.raises(ValueError, match="left has 4 rows, the result has 5"):
        matmul(x, w, thin=(left[:4].copy(), right))
    with pytest.raises(ValueError, match="right has shape"):
        matmul(x, w, thin=(left, right[:, :9].copy()))


@pytest.mark.slow
def test_the_compiled_graph_gives_the_same_bits(rng):
    torch.compiler.reset()
    w, x, left, right, g, right_t = drawn(rng, *SMALL)
    weights = weights_of(TernaryLinear(w))

    def both(x, left, right, g, right_t):
        y = product(x, weights, left, right, to_bfloat16=True)
        return y, product_t(g, weights, left, right_t, backward="int8")

    given = tensors(x, left, right, g, right_t)
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(both(*given), compiled(*given), strict=True):
        assert torch.equal(ours, theirs)
