"""A layer in native calls gives the bits of its operations one by one."""

import numpy as np
import pytest
import torch

from sterna_kernels import TernaryMatrix
from sterna_kernels.torch import ternary_linear
from sterna_kernels.torch_layer import LINEARS, NO_ADAPTER, FrozenLayer, put_heads
from sterna_kernels.torch_rows import gated, rms_norm, rotated

EPS = 1e-5
NO_ADAPTERS = [NO_ADAPTER] * len(LINEARS)


class Shape:
    """Feed-forward 160; heads of ``size``, ``kv_heads`` of keys and values; ``rows``: a scale a row."""

    def __init__(
        self,
        rng: np.random.Generator,
        *,
        heads: int,
        kv_heads: int,
        size: int,
        rows: bool,
        hidden: int = 96,
    ) -> None:
        self.heads, self.kv_heads, self.size, self.hidden = heads, kv_heads, size, hidden
        columns, kv, ffn = heads * size, kv_heads * size, 160
        shapes = [
            (columns, hidden),
            (kv, hidden),
            (kv, hidden),
            (hidden, columns),
            (ffn, hidden),
            (ffn, hidden),
            (hidden, ffn),
        ]
        self.linears = {
            name: self._matrix(rng, shape, rows) for name, shape in zip(LINEARS, shapes, strict=True)
        }
        lengths = {"attn_norm": hidden, "attn_sub_norm": columns, "ffn_norm": hidden, "ffn_sub_norm": ffn}
        self.norms = {
            name: torch.tensor(rng.uniform(0.5, 1.5, n).astype(np.float32)) for name, n in lengths.items()
        }
        self.layer = FrozenLayer(
            {name: [matrix] for name, matrix in self.linears.items()},
            self.norms,
            heads=heads,
            kv_heads=kv_heads,
            head_size=size,
            activation="relu2",
            eps=EPS,
        )

    def _matrix(self, rng: np.random.Generator, shape: tuple[int, int], rows: bool) -> TernaryMatrix:
        codes = rng.integers(-1, 2, shape).astype(np.int8)
        if not rows:
            return TernaryMatrix.from_codes(codes, 0.1)
        return TernaryMatrix.from_codes(
            codes, 1.0, row_scales=rng.uniform(0.05, 0.2, shape[0]).astype(np.float32)
        )

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return ternary_linear(x, self.linears[name])

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.norms[name], EPS)


@pytest.fixture(
    params=[
        {"heads": 3, "kv_heads": 1, "size": 10, "rows": False},
        # Halves of heads are whole panels, of every variant.
        {"heads": 2, "kv_heads": 1, "size": 128, "rows": False},
        {"heads": 2, "kv_heads": 2, "size": 128, "rows": True},
    ],
    ids=["small heads", "large heads", "scales of rows"],
)
def shape(request, rng) -> Shape:
    return Shape(rng, **request.param)


def normal(rng: np.random.Generator, *sizes: int) -> torch.Tensor:
    return torch.tensor(rng.standard_normal(sizes).astype(np.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("tokens", [1, 2, 9, 33])
def test_projections_are_those_of_the_operations_one_by_one(variant, rng, shape, tokens, dtype):
    h = normal(rng, 2, tokens, 96)
    cos, sin = normal(rng, tokens, shape.size // 2), normal(rng, tokens, shape.size // 2)
    projections = shape.layer.projections(h, dtype)
    shape.layer.project(h, NO_ADAPTERS, cos=cos, sin=sin, to=projections)
    x = shape.norm("attn_norm", h)
    expected = [shape.linear(name, x).view(2, tokens, -1, shape.size) for name in ("q", "k", "v")]
    expected[:2] = [rotated(heads, cos, sin) for heads in expected[:2]]
    for got, wanted in zip(projections, expected, strict=True):
        assert torch.equal(got, wanted.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("tokens", [1, 2, 9, 33])
def test_the_rest_is_that_of_the_operations_one_by_one(variant, rng, shape, tokens, dtype):
    h = normal(rng, 1, tokens, 96)
    attention = normal(rng, 1, tokens, shape.heads, shape.size).to(dtype)
    expected = h + shape.linear("o", shape.norm("attn_sub_norm", attention.flatten(2)))
    x = shape.norm("ffn_norm", expected)
    inner = gated("relu2", shape.linear("gate", x), shape.linear("up", x), None, EPS)
    expected = expected + shape.linear("down", shape.norm("ffn_sub_norm", inner.to(dtype)))
    shape.layer.complete(h, NO_ADAPTERS, attention)
    assert torch.equal(h, expected)


def test_rows_beyond_those_that_the_cache_holds_at_once(variant, rng):
    shape = Shape(rng, heads=1, kv_heads=1, size=128, rows=True, hidden=16384)
    h = normal(rng, 2, 40, shape.hidden)
    cos, sin = normal(rng, 40, 64), normal(rng, 40, 64)
    projections = shape.layer.projections(h, torch.float32)
    shape.layer.project(h, NO_ADAPTERS, cos=cos, sin=sin, to=projections)
    x = shape.norm("attn_norm", h)
    for got, name in zip(projections, ("q", "k", "v"), strict=True):
        straight = shape.linear(name, x).view(2, 40, 1, 128)
        assert torch.equal(got, straight if name == "v" else rotated(straight, cos, sin))
    expected = h + shape.linear("o", shape.norm("attn_sub_norm", projections[0].flatten(2)))
    x = shape.norm("ffn_norm", expected)
    inner = gated("relu2", shape.linear("gate", x), shape.linear("up", x), None, EPS)
    expected = expected + shape.linear("down", shape.norm("ffn_sub_norm", inner))
    shape.layer.complete(h, NO_ADAPTERS, projections[0])
    assert torch.equal(h, expected)


@pytest.mark.parametrize("tokens", [1, 33])
def test_an_adapter_of_some_linears_is_added_before_the_rotation(variant, rng, shape, tokens):
    h = normal(rng, 1, tokens, 96)
    cos, sin = normal(rng, tokens, shape.size // 2), normal(rng, tokens, shape.size // 2)
    ranks = {"q": 5, "k": 0, "v": 2}
    factors = {
        name: (normal(rng, rank, 96), normal(rng, rank, shape.linears[name].shape[0]))
        for name, rank in ranks.items()
    }
    adapter = [
        (factors[name][0].data_ptr(), factors[name][1].data_ptr(), ranks[name])
        if ranks.get(name)
        else NO_ADAPTER
        for name in LINEARS
    ]
    projections = shape.layer.projections(h, torch.float32)
    shape.layer.project(h, adapter, cos=cos, sin=sin, to=projections)
    x = shape.norm("attn_norm", h)
    for got, (name, (a, right)) in zip(projections, factors.items(), strict=True):
        wanted = (shape.linear(name, x) + x @ a.T @ right).view(1, tokens, -1, shape.size)
        wanted = wanted if name == "v" else rotated(wanted, cos, sin)
        # Sums of 96 and of 5 products in another order.
        assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("name", ["k", "o", "down"])
def test_linears_that_do_not_fit_each_other_are_refused(rng, shape, name):
    other = TernaryMatrix.from_codes(np.ones((3, 5), np.int8), 1.0)
    linears = {known: [matrix] for known, matrix in shape.linears.items()} | {name: [other]}
    with pytest.raises(ValueError, match=r"linear \d is \d"):
        FrozenLayer(
            linears,
            shape.norms,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_size=shape.size,
            activation="relu2",
            eps=EPS,
        )


def test_rows_of_heads_go_behind_those_that_are_there(rng):
    room = torch.zeros(2, 3, 9, 8)
    x, y = normal(rng, 2, 4, 3, 8), normal(rng, 2, 5, 3, 8).to(torch.bfloat16)
    put_heads(x, room, 0)
    put_heads(y, room, 4)
    assert torch.equal(room, torch.cat([x, y.float()], 1).transpose(1, 2))
    with pytest.raises(ValueError, match="5 tokens from 5 on, there is room for 9"):
        put_heads(y, room, 5)
