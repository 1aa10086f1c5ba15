import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor

from sterna_kernels import TernaryMatrix, matmul, matmul_t, reference
from sterna_kernels.torch import TernaryLinear, share, ternary_linear

BACKWARDS = ["int8", "int8x2", "fp32"]
EPSILON = 2.0**-24


@pytest.fixture
def matrix(rng) -> TernaryMatrix:
    return TernaryMatrix.from_codes(rng.integers(-1, 2, (70, 130), dtype=np.int8), 0.25)


def dense(w: TernaryMatrix) -> Tensor:
    scales = np.ones((w.shape[0], 1), np.float32)
    if w.row_scales is not None:
        scales = w.row_scales[:, None]
    if w.group_scales is not None:
        scales = w.group_scales.repeat(w.group_size, axis=1)[:, : w.shape[1]]
    return torch.from_numpy(w.codes()).double() * w.scale * torch.from_numpy(scales.copy())


def rounding_error(rows: Tensor, w: Tensor, limit: int, *, steps: float = 0.5) -> Tensor:
    """Largest difference to the exact product rows @ w.

    Each element is off by half a step at most, or by a whole one where chance rounds (``steps``), each of the
    few float32 operations by EPSILON of its operand.
    """
    step = rows.abs().amax(-1, keepdim=True) / limit
    return (steps * step + 8 * EPSILON * rows.abs().amax(-1, keepdim=True)) * w.abs().sum(0)


def test_the_operator_returns_the_bits_of_the_numpy_product(matrix):
    x = torch.randn(6, 130, generator=torch.Generator().manual_seed(1))
    np.testing.assert_array_equal(ternary_linear(x, matrix).numpy(), matmul(x.numpy(), matrix))


@pytest.mark.parametrize(("backward", "limbs"), [("int8", 1), ("int8x2", 2)])
def test_the_gradient_has_the_bits_of_the_numpy_product(matrix, backward, limbs):
    x = torch.randn(6, 130).requires_grad_()
    g = torch.randn(6, 70, generator=torch.Generator().manual_seed(2))
    ternary_linear(x, matrix, backward=backward).backward(g)
    np.testing.assert_array_equal(x.grad.numpy(), matmul_t(g.numpy(), matrix, limbs=limbs))


def test_the_forward_is_a_dense_layers_within_the_rounding_of_its_input(matrix):
    x = torch.randn(40, 130, generator=torch.Generator().manual_seed(3)) * torch.logspace(-6, 6, 40)[:, None]
    w = dense(matrix).T
    exact, bound = x.double() @ w, rounding_error(x.double().clamp(-1e30, 1e30), w, 127)
    floor = 0.5 * 1e-5 / 127 * w.abs().sum(0)
    assert ((ternary_linear(x, matrix) - exact).abs() <= torch.maximum(bound, floor)).all()


@pytest.mark.parametrize(
    ("backward", "limit", "steps"), [("int8", 127, 1), ("int8x2", 127 * 256, 0.5), ("fp32", 2**24, 0.5)]
)
def test_the_gradient_is_a_dense_layers_within_the_rounding_of_its_output(matrix, backward, limit, steps):
    x = torch.randn(40, 130).requires_grad_()
    g = torch.randn(40, 70, generator=torch.Generator().manual_seed(4)) * torch.logspace(-12, 3, 40)[:, None]
    ternary_linear(x, matrix, backward=backward).backward(g)
    w = dense(matrix)
    # A float32 sum of 70 products is off by 70 EPSILON at most.
    summed = 70 * EPSILON * (g.double().abs() @ w.abs())
    bound = rounding_error(g.double(), w, limit, steps=steps) + summed
    assert ((x.grad - g.double() @ w).abs() <= bound).all()


def test_the_gradient_predicts_a_step_larger_than_the_rounding(matrix):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(1, 130, generator=generator).requires_grad_()
    g = torch.randn(1, 70, generator=generator)
    y = ternary_linear(x, matrix, backward="int8x2")
    y.backward(g)
    towards = x.grad / x.grad.norm()
    moved = ternary_linear(x.detach() + 4 * towards, matrix)
    predicted, happened = 4 * x.grad.norm(), ((moved - y.detach()) * g).sum()
    w = dense(matrix).T
    limit = sum((rounding_error(v.double(), w, 127) * g.abs()).sum() for v in (x, x + 4 * towards))
    assert abs(predicted - happened) <= limit
    assert limit < 0.5 * predicted


@pytest.mark.parametrize("backward", BACKWARDS)
def test_scales_of_rows_reach_both_directions(rng, backward):
    scales = rng.uniform(0.5, 2, 70).astype(np.float32)
    w = TernaryMatrix.from_codes(rng.integers(-1, 2, (70, 130), dtype=np.int8), 0.25, row_scales=scales)
    layer = TernaryLinear(w, backward=backward).bfloat16()
    x = torch.randn(5, 130).requires_grad_()
    g = torch.randn(5, 70)
    y = layer(x)
    np.testing.assert_array_equal(y.detach().numpy(), matmul(x.detach().numpy(), w))
    y.backward(g)
    scaled = g.double() * torch.from_numpy(scales)
    unscaled = dense(w) / torch.from_numpy(scales)[:, None]
    # The coarsest rounding, one limb, bounds all three.
    assert ((x.grad - scaled @ unscaled).abs() <= rounding_error(scaled, unscaled, 127, steps=1)).all()


@pytest.fixture
def grouped(rng) -> TernaryMatrix:
    codes = rng.integers(-1, 2, (70, 130), dtype=np.int8)
    scales = rng.uniform(0.5, 2, (70, 3)).astype(np.float32)
    return TernaryMatrix.from_codes(codes, 0.25, group_scales=scales, group_size=64)


@pytest.mark.parametrize("backward", BACKWARDS)
def test_scales_of_groups_reach_both_directions(grouped, backward):
    layer = TernaryLinear(grouped, backward=backward).bfloat16()
    x = torch.randn(5, 130, generator=torch.Generator().manual_seed(6)).requires_grad_()
    g = torch.randn(5, 70, generator=torch.Generator().manual_seed(7))
    y = layer(x)
    np.testing.assert_array_equal(y.detach().numpy(), matmul(x.detach().numpy(), grouped))
    exact = x.detach().double() @ dense(grouped).T
    assert ((y - exact).abs() <= rounding_error(x.detach().double(), dense(grouped).T, 127)).all()
    y.backward(g)
    # A group quantises g times its scales: a step is 2 / 0.5 times as coarse as the weight it meets at most.
    bound = 4 * rounding_error(g.double(), dense(grouped), 127, steps=1)
    assert ((x.grad - g.double() @ dense(grouped)).abs() <= bound).all()
    if backward != "fp32":
        limbs = 1 if backward == "int8" else 2
        np.testing.assert_array_equal(x.grad.numpy(), matmul_t(g.numpy(), grouped, limbs=limbs))


def test_two_planes_are_the_sum_of_two_products(rng):
    planes = [
        TernaryMatrix.from_codes(
            rng.integers(-1, 2, (70, 130), dtype=np.int8),
            1.0,
            group_scales=rng.uniform(0.5, 2, (70, 2)).astype(np.float32),
            group_size=128,
        )
        for _ in range(2)
    ]
    x = torch.randn(4, 130, generator=torch.Generator().manual_seed(8)).requires_grad_()
    y = ternary_linear(x, planes[0]) + ternary_linear(x, planes[1])
    both = dense(planes[0]) + dense(planes[1])
    bounds = [rounding_error(x.detach().double(), dense(plane).T, 127) for plane in planes]
    assert ((y.detach() - x.detach().double() @ both.T).abs() <= bounds[0] + bounds[1]).all()
    g = torch.randn(4, 70, generator=torch.Generator().manual_seed(9))
    y.backward(g)
    expected = matmul_t(g.numpy(), planes[0]) + matmul_t(g.numpy(), planes[1])
    np.testing.assert_array_equal(x.grad.numpy(), expected)


@pytest.mark.parametrize("backward", BACKWARDS)
@pytest.mark.parametrize("leading", [(), (1,), (3,), (2, 3), (2, 1, 3), (0,), (2, 0)])
def test_leading_dimensions_stay(matrix, leading, backward):
    x = torch.randn(*leading, 130).requires_grad_()
    y = ternary_linear(x, matrix, backward=backward)
    assert y.shape == (*leading, 70)
    y.sum().backward()
    assert x.grad.shape == x.shape


# One row; a few; more than a panel; results that leave past the caches, from an odd number of panels.
@pytest.mark.parametrize("shape", [(1, 40, 70), (5, 40, 70), (40, 96, 700), (270, 2080, 70)])
@pytest.mark.parametrize("scales", [None, "rows", "groups"])
def test_bfloat16_rows_give_the_float32_results_rounded_once(variant, rng, shape, scales):
    m, n, k = shape
    codes = rng.integers(-1, 2, (n, k), dtype=np.int8)
    each = None if scales is None else rng.uniform(0.1, 2, n if scales == "rows" else (n, -(-k // 64)))
    given = {} if each is None else {f"{scales[:-1]}_scales": each.astype(np.float32)}
    w = TernaryMatrix.from_codes(codes, 0.37, **given, **({"group_size": 64} if scales == "groups" else {}))
    x, g = (torch.from_numpy(rng.standard_normal((m, side), np.float32)).bfloat16() for side in (k, n))
    x[m // 2, k // 2] = torch.nan
    x[-1] *= 1e-30
    for limbs in ("int8", "int8x2"):
        ours, wide = x.clone().requires_grad_(), x.float().requires_grad_()
        y, expected = ternary_linear(ours, w, backward=limbs), ternary_linear(wide, w, backward=limbs)
        y.backward(g)
        expected.backward(g.float())
        torch.testing.assert_close(y, expected.bfloat16(), rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(ours.grad, wide.grad.bfloat16(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_converted_and_returned(matrix, dtype):
    x = torch.randn(5, 130).to(dtype).requires_grad_()
    y = ternary_linear(x, matrix)
    assert y.dtype == dtype
    torch.testing.assert_close(y, ternary_linear(x.float(), matrix).to(dtype), rtol=0, atol=0)
    y.sum().backward()
    assert x.grad.dtype == dtype


def test_strided_input_is_taken(matrix):
    x = torch.randn(130, 4).T
    torch.testing.assert_close(
        ternary_linear(x, matrix), ternary_linear(x.contiguous(), matrix), rtol=0, atol=0
    )
    g = torch.randn(70, 4).T
    leaf = x.clone().requires_grad_()
    ternary_linear(leaf, matrix, backward="int8x2").backward(g)
    np.testing.assert_array_equal(leaf.grad.numpy(), matmul_t(g.contiguous().numpy(), matrix, limbs=2))


def test_input_that_does_not_fit_is_refused_on_both_paths(matrix):
    for wants_gradient in (False, True):
        with pytest.raises(ValueError, match=r"x has shape \(2, 129\).*needs \(..., 130\)"):
            ternary_linear(torch.zeros(2, 129, requires_grad=wants_gradient), matrix)
        with pytest.raises(TypeError, match="float64"):
            ternary_linear(torch.zeros(2, 130, dtype=torch.float64, requires_grad=wants_gradient), matrix)


@pytest.mark.parametrize(
    "make", [TernaryLinear, lambda w, backward: ternary_linear(torch.zeros(130), w, backward=backward)]
)
def test_an_unknown_backward_is_named(matrix, make):
    with pytest.raises(ValueError, match=r"backward='int4'.*int8x2"):
        make(matrix, backward="int4")


def test_the_module_computes_the_function_and_saves_nothing(matrix):
    layer = TernaryLinear(matrix, backward="fp32")
    x = torch.randn(3, 130)
    torch.testing.assert_close(layer(x), ternary_linear(x, matrix), rtol=0, atol=0)
    assert list(layer.parameters()) == []
    assert layer.state_dict() == {}
    assert "in_features=130, out_features=70, backward=fp32" in repr(layer)


def test_the_module_shares_the_memory_of_its_matrix(matrix):
    assert TernaryLinear(matrix).packed.data_ptr() == matrix.packed.ctypes.data == share(matrix).data_ptr()


def test_a_matrix_is_let_go_when_nobody_uses_it(rng):
    w = TernaryMatrix.from_codes(rng.integers(-1, 2, (20, 20), dtype=np.int8), 1.0)
    alive, packed, tensor = weakref.ref(w), weakref.ref(w.packed), share(w)
    del w
    gc.collect()
    assert alive() is None
    assert packed() is not None  # the tensor is on its memory
    del tensor
    gc.collect()
    assert packed() is None


def test_a_module_survives_copies_and_casts(matrix):
    layer = copy.deepcopy(TernaryLinear(matrix)).bfloat16()
    x = torch.randn(3, 130)
    torch.testing.assert_close(layer(x), ternary_linear(x, matrix), rtol=0, atol=0)


def test_weights_outlive_their_matrix(rng):
    layer = TernaryLinear(TernaryMatrix.from_codes(rng.integers(-1, 2, (70, 130), dtype=np.int8), 1.0))
    x = torch.randn(3, 130)
    before = layer(x)
    _ = [np.full(10_000, 7, np.uint8) for _ in range(100)]
    torch.testing.assert_close(layer(x), before, rtol=0, atol=0)


def test_the_fp32_backward_goes_through_more_rows_than_it_holds_at_once(rng):
    w = TernaryMatrix.from_codes(rng.integers(-1, 2, (1100, 40), dtype=np.int8), 0.5)
    x = torch.randn(2, 40).requires_grad_()
    ternary_linear(x, w, backward="fp32").sum().backward()
    np.testing.assert_allclose(x.grad[0].numpy(), w.codes().sum(0) * 0.5, rtol=0, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("backward", BACKWARDS)
def test_torch_finds_nothing_wrong_with_the_operators(matrix, backward):
    rows, groups = (torch.rand(70), 0), (torch.rand(70, 3), 64)
    for wants_gradient, scales in ((False, (None, 0)), (True, (None, 0)), (True, rows), (True, groups)):
        x = torch.randn(2, 3, 130, requires_grad=wants_gradient)
        torch.library.opcheck(
            torch.ops.sterna.ternary_linear.default, (x, share(matrix), 70, 130, 0.25, *scales, backward)
        )
    g = torch.randn(2, 3, 70)
    for scales in (rows, groups):
        torch.library.opcheck(
            torch.ops.sterna.ternary_linear_backward.default,
            (g, share(matrix), 70, 130, 0.25, *scales, backward),
        )


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("kind", ["matrix", "grouped"])
def test_torch_compiles_a_layer_without_a_graph_break(request, kind, dynamic):
    torch.compiler.reset()  # it compiles the same method only so many times
    layer = TernaryLinear(request.getfixturevalue(kind))
    # aot_eager is the whole path but the C++ compiler, which would take seconds and tell nothing about us.
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows in (3, 5):
        x, g = torch.randn(rows, 130), torch.randn(rows, 70)
        leaves = [x.clone().requires_grad_() for _ in range(2)]
        for leaf, f in zip(leaves, (layer, compiled), strict=True):
            f(leaf).relu().backward(g)
        torch.testing.assert_close(compiled(x), layer(x), rtol=0, atol=0)
        torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=0, atol=0)


def test_reference_and_operator_agree_on_what_is_not_finite(matrix):
    x = torch.ones(2, 130)
    x[0, 5] = torch.nan
    np.testing.assert_array_equal(
        ternary_linear(x, matrix).numpy(), reference.matmul(x.numpy(), matrix.codes(), matrix.scale)
    )
