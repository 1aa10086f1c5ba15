"""Attention in tiles is near the exact one, and so are its gradients."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import sterna_kernels
from sterna_kernels.torch_attention import attend_in_place, attends, attention

with_attention = pytest.mark.parametrize("variant", ["amx", "amx-emulated"], indirect=True)
with_shapes = pytest.mark.parametrize(
    ("queries", "keys", "heads", "kv_heads", "size"),
    [(1, 1, 1, 1, 32), (33, 33, 4, 2, 64), (40, 71, 2, 1, 96), (64, 64, 2, 2, 128), (5, 32, 3, 3, 32)],
)


def normal(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape, np.float32))


@with_attention
@with_shapes
def test_attention_is_the_exact_one_rounded_to_bfloat16(variant, rng, queries, keys, heads, kv_heads, size):
    q = normal(rng, 2, queries, heads, size).to(torch.bfloat16)
    k, v = (normal(rng, 2, keys, kv_heads, size).to(torch.bfloat16) for _ in range(2))
    expected = exact_attention(q, k, v)
    if not attend_in_place(q, k, v):
        pytest.skip("this processor has tiles of int8 alone")
    # Each weight is rounded to 2^-9 of itself, and so is the result: no more than that of the largest value.
    assert (q.double() - expected).abs().max() <= 2**-8 * v.abs().max()


def exact_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True).transpose(1, 2)


@with_attention
def test_large_scores_leave_one_key_in_charge(variant, rng):
    q = torch.full((1, 40, 1, 32), 100.0, dtype=torch.bfloat16)
    k = normal(rng, 1, 40, 1, 32).to(torch.bfloat16)
    v = normal(rng, 1, 40, 1, 32).to(torch.bfloat16)
    expected = exact_attention(q, k, v)
    if not attend_in_place(q, k, v):
        pytest.skip("this processor has tiles of int8 alone")
    assert (q.double() - expected).abs().max() <= 2**-8 * v.abs().max()


@pytest.mark.parametrize(
    ("size", "dtype"), [(40, torch.bfloat16), (32, torch.float32)], ids=["other size", "float32"]
)
def test_what_it_has_no_attention_for_is_left_as_it_is(variant, rng, size, dtype):
    q, k, v = (normal(rng, 1, 8, 1, size).to(dtype) for _ in range(3))
    before = q.clone()
    assert not attend_in_place(q, k, v)
    assert torch.equal(q, before)


def test_variants_without_tiles_have_no_attention():
    before = sterna_kernels.variant()
    sterna_kernels.use_variant("scalar")
    try:
        assert not attend_in_place(*(torch.zeros(1, 8, 1, 32, dtype=torch.bfloat16) for _ in range(3)))
    finally:
        sterna_kernels.use_variant(before)


def test_keys_of_other_heads_are_refused():
    q, k = torch.zeros(1, 8, 3, 32, dtype=torch.bfloat16), torch.zeros(1, 8, 2, 32, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="q, k and v have shapes"):
        attend_in_place(q, k, k[:, :4].contiguous())


@with_attention
@with_shapes
def test_gradients_are_the_exact_ones_rounded_to_bfloat16(variant, rng, queries, keys, heads, kv_heads, size):
    q, g = (normal(rng, 2, queries, heads, size).to(torch.bfloat16) for _ in range(2))
    k, v = (normal(rng, 2, keys, kv_heads, size).to(torch.bfloat16) for _ in range(2))
    given = [x.requires_grad_() for x in (q, k, v)]
    if not attends(*given):
        pytest.skip("this processor has tiles of int8 alone")
    attention(*given).backward(g)
    for x, (exact, bound) in zip(given, exact_gradients(q, k, v, g), strict=True):
        assert ((x.grad.double() - exact).abs() <= bound).all()


def exact_gradients(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of q, k and v, each with how far from it the rounded ones may be.

    A weight, the gradient of a score and a result are rounded by up to 2^-8 of themselves each, and a weight
    is a power of two within 2^-14; the gradient of a score is a difference of slopes, which may cancel.
    """
    shared = q.shape[2] // k.shape[2]
    q, k, v, g = (x.detach().double().transpose(1, 2) for x in (q, k, v, g))
    k, v = (x.repeat_interleave(shared, 1) for x in (k, v))
    seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
    root = q.shape[-1] ** -0.5
    weights = (q @ k.mT * root).masked_fill(~seen, -torch.inf).softmax(-1)
    slopes = g @ v.mT
    means = (weights * slopes).sum(-1, keepdim=True)
    scores = weights * (slopes - means) * root
    parts = weights * (slopes.abs() + (weights * slopes.abs()).sum(-1, keepdim=True)) * root
    unsure = 2**-8 * scores.abs() + 2**-12 * parts

    def together(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(1, (-1, shared)).sum(2)

    found = [
        (scores @ k, unsure @ k.abs()),
        (together(scores.mT @ q), together(unsure.mT @ q.abs())),
        (together(weights.mT @ g), together(2**-8 * weights.mT @ g.abs())),
    ]
    return [(x.transpose(1, 2), (2**-8 * x.abs() + off + 1e-30).transpose(1, 2)) for x, off in found]


@with_attention
def test_gradients_come_through_large_scores(variant, rng):
    q = torch.full((1, 40, 1, 32), 100.0, dtype=torch.bfloat16, requires_grad=True)
    k, v = (normal(rng, 1, 40, 1, 32).to(torch.bfloat16).requires_grad_() for _ in range(2))
    if not attends(q, k, v):
        pytest.skip("this processor has tiles of int8 alone")
    attention(q, k, v).backward(normal(rng, 1, 40, 1, 32).to(torch.bfloat16))
    assert all(torch.isfinite(x.grad).all() for x in (q, k, v))


@with_attention
def test_threads_change_no_bit_of_a_gradient(variant, rng):
    q, g = (normal(rng, 1, 96, 4, 64).to(torch.bfloat16) for _ in range(2))
    k, v = (normal(rng, 1, 96, 2, 64).to(torch.bfloat16) for _ in range(2))
    if not attends(q, k, v):
        pytest.skip("this processor has tiles of int8 alone")
    before, found = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        given = [x.clone().requires_grad_() for x in (q, k, v)]
        attention(*given).backward(g)
        found.append([x.grad for x in given])
    torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
