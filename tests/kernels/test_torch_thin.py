"""A product of low rank added on the way out: the bits of the NumPy product, in either type."""

import numpy as np
import pytest
import torch

from sterna_kernels import TernaryMatrix, matmul, matmul_t
from sterna_kernels.torch import TernaryLinear
from sterna_kernels.torch_thin import outer, product, product_t, weights_of

# Results that are large enough leave past the caches.
SMALL, LARGE = (5, 40, 70), (130, 2048, 96)
EPSILON = 2.0**-24


def drawn(rng, m, n, k, rank=3):
    w = TernaryMatrix.from_codes(rng.integers(-1, 2, (n, k), np.int8), 0.37)
    shapes = (m, k), (rank, k), (rank, n), (m, n)
    return w, *(rng.standard_normal(shape, np.float32) for shape in shapes)


def tensors(*arrays):
    return tuple(map(torch.from_numpy, arrays))


def assert_near(found, rows, factor):
    """``found`` is rows @ factor.T, but for the rounding of each addition in any order."""
    rows, factor = (x.astype(np.float64) for x in (rows, factor))
    bound = rows.shape[-1] * EPSILON * (np.abs(rows) @ np.abs(factor).T)
    assert (np.abs(found - rows @ factor.T) <= bound).all()


@pytest.mark.parametrize("shape", [SMALL, LARGE, (1, 40, 70)])
def test_the_operators_return_the_bits_of_the_numpy_products(variant, rng, shape):
    w, x, a, right, g = drawn(rng, *shape)
    weights = weights_of(TernaryLinear(w))
    y, left = product(*tensors(x), weights, *tensors(a, right))
    assert_near(left.numpy(), x, a)
    np.testing.assert_array_equal(y.numpy(), matmul(x, w, thin=(left.numpy(), right)))
    for backward, limbs in (("int8", 1), ("int8x2", 2)):
        dx, left = product_t(*tensors(g), weights, *tensors(right, a), backward=backward)
        assert_near(left.numpy(), g, right)
        np.testing.assert_array_equal(dx.numpy(), matmul_t(g, w, limbs=limbs, thin=(left.numpy(), a)))


@pytest.mark.parametrize("shape", [SMALL, LARGE, (1, 40, 70)])
def test_a_bfloat16_result_is_the_float32_result_rounded_once(variant, rng, shape):
    w, x, a, right, _ = drawn(rng, *shape)
    weights = weights_of(TernaryLinear(w))
    rounded, _ = product(*tensors(x), weights, *tensors(a, right), to_bfloat16=True)
    assert torch.equal(rounded, product(*tensors(x), weights, *tensors(a, right))[0].to(torch.bfloat16))


@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_bfloat16_rows_count_as_the_float32_ones_they_are(variant, rng, shape):
    w, x, a, right, g = tensors_of(drawn(rng, *shape))
    weights, x, g = weights_of(TernaryLinear(w)), x.bfloat16(), g.bfloat16()
    for ours, theirs in zip(
        (*product(x, weights, a, right), *product_t(g, weights, right, a, backward="int8")),
        (*product(x.float(), weights, a, right), *product_t(g.float(), weights, right, a, backward="int8")),
        strict=True,
    ):
        assert torch.equal(ours, theirs)
    left = torch.randn(shape[0], 5)
    assert torch.equal(outer(g, left, 2.0), outer(g.float(), left, 2.0))


def tensors_of(parts):
    return parts[0], *tensors(*parts[1:])


@pytest.mark.parametrize("rank", [1, 4, 11])
@pytest.mark.parametrize("columns", [1, 16, 64, 75, 200])
def test_the_outer_product_is_the_gradient_of_the_other_factor(rng, rank, columns):
    g, left = rng.standard_normal((23, columns), np.float32), rng.standard_normal((23, rank), np.float32)
    found = outer(*tensors(g, left), 2.0).numpy()
    assert found.shape == (columns, rank)
    assert_near(found / 2, g.T, left.T)


def test_the_fp32_backward_adds_it_too(rng):
    w, _, a, right, g = drawn(rng, *SMALL)
    dx, left = product_t(*tensors(g), weights_of(TernaryLinear(w)), *tensors(right, a), backward="fp32")
    assert_near(left.numpy(), g, right)
    exact = (g.astype(np.float64) @ w.codes()) * np.float32(0.37) + left.numpy().astype(np.float64) @ a
    np.testing.assert_allclose(dx.numpy(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("part", "named"), [(0, "x"), (1, "factor"), (2, "factor")])
def test_parts_of_another_shape_or_type_are_named(rng, part, named):
    w, *parts, _ = drawn(rng, *SMALL)
    weights = weights_of(TernaryLinear(w))
    for wrong, error in ((parts[part][:, :-1], ValueError), (parts[part].astype(np.float64), TypeError)):
        x, a, right = (torch.from_numpy(wrong if i == part else array) for i, array in enumerate(parts))
        with pytest.raises(error, match=named):
            product(x, weights, a, right)


def test_an_outer_product_of_other_rows_is_refused():
    with pytest.raises(ValueError, match=r"left has shape \(3, 2\), g \(4, 5\)"):
        outer(torch.zeros(4, 5), torch.zeros(3, 2), 1.0)
    with pytest.raises(TypeError, match="factors must be float32"):
        outer(torch.zeros(4, 5), torch.zeros(4, 2, dtype=torch.float64), 1.0)


def test_numpy_factors_that_do_not_fit_are_named(rng):
    w, x, _, right, _ = drawn(rng, *SMALL)
    left = np.zeros((5, 3), np.float32)
    with pytest.raises(ValueError, match="left has 4 rows, the result has 5"):
        matmul(x, w, thin=(left[:4].copy(), right))
    with pytest.raises(ValueError, match="right has shape"):
        matmul(x, w, thin=(left, right[:, :9].copy()))


@pytest.mark.slow
def test_the_compiled_graph_gives_the_same_bits(rng):
    torch.compiler.reset()
    w, x, a, right, g = drawn(rng, *SMALL)
    weights = weights_of(TernaryLinear(w))

    def all_three(x, a, right, g):
        y, left = product(x, weights, a, right, to_bfloat16=True)
        return y, left, *product_t(g, weights, right, a, backward="int8"), outer(g, left, 0.5)

    given = tensors(x, a, right, g)
    compiled = torch.compile(all_three, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(all_three(*given), compiled(*given), strict=True):
        assert torch.equal(ours, theirs)
