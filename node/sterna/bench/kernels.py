"""How fast the ternary products are, beside torch, one thread, float32 in and out.

Weights are warm in the cache for products (one matrix again and again), cold for decoding (layers of distinct
ones). Times of ternary products hold everything: quantisation, unpacking, product, scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

import sterna_kernels
from sterna.bench.dense import Product, torch_on_avx2, torch_seconds
from sterna.bench.timing import cpu_seconds, medians_in_turns
from sterna_kernels import TernaryMatrix, matmul, matmul_t, packed_nbytes
from sterna_kernels.reference import Limbs

LAYER = {(2560, 2560): 2, (640, 2560): 2, (6912, 2560): 2, (2560, 6912): 1}
"""The linears of BitNet-b1.58-2B-4T, out x in, and how many of each a layer has."""

ROWS = (512, 64, 1)
DIRECTIONS = ("forward", "backward", "backward x2")


@dataclass(frozen=True, slots=True)
class Figure:
    """One product's speed on each system, in GOPS (a multiplication or addition is one operation)."""

    product: Product
    gops: dict[str, float]


@dataclass(frozen=True, slots=True)
class KernelReport:
    """``decode`` is in GB/s of weights, beside ``read``, a sum over as many bytes by torch."""

    figures: list[Figure]
    decode: dict[str, float]


def measure_kernels(repeats: int, layers: int, progress: Callable[[str], None]) -> KernelReport:
    """Measure all products on all variants and on torch, then decoding; ``progress`` hears what is next."""
    torch.set_num_threads(1)
    variants = [name for name in sterna_kernels.variants() if name != "scalar"]
    in_use = sterna_kernels.variant()
    try:
        return KernelReport(_products(variants, repeats, progress), _decode(variants, repeats, layers))
    finally:
        sterna_kernels.use_variant(in_use)


def random_matrix(shape: tuple[int, int], seed: int = 0) -> TernaryMatrix:
    """Random weights of this shape; what they are does not change the speed."""
    packed = np.random.default_rng(seed).integers(0, 256, packed_nbytes(shape), np.uint8)
    # A quarter of the bit pairs would be the unused code 11: here its low bit is cleared.
    packed &= ~((packed >> 1) & packed & 0x55)
    return TernaryMatrix.from_packed(packed, shape, 0.01)


def _products(variants: list[str], repeats: int, progress: Callable[[str], None]) -> list[Figure]:
    figures = []
    with torch_on_avx2() as avx2:
        for shape in LAYER:
            w = random_matrix(shape)
            progress(f"{shape[0]} x {shape[1]}")
            for rows in ROWS:
                for direction in DIRECTIONS:
                    if rows == 1 and direction != "forward":
                        continue
                    product = Product(direction, *shape, rows)
                    systems = {
                        "torch fp32": partial(torch_seconds, product),
                        "torch fp32 avx2": partial(avx2, product),
                        "torch bf16": partial(torch_seconds, product, torch.bfloat16),
                    }
                    systems |= {name: partial(_ternary_seconds, name, w, product) for name in variants}
                    seconds = medians_in_turns(systems, repeats)
                    gops = {name: product.operations / s / 1e9 for name, s in seconds.items()}
                    figures.append(Figure(product, gops))
    return figures


def _ternary_seconds(variant: str, w: TernaryMatrix, product: Product) -> float:
    width = product.k if product.is_forward else product.n
    a = np.random.default_rng(1).standard_normal((product.rows, width), np.float32)
    limbs: Limbs = 2 if product.direction == "backward x2" else 1
    sterna_kernels.use_variant(variant)
    return cpu_seconds(
        (lambda: matmul(a, w)) if product.is_forward else (lambda: matmul_t(a, w, limbs=limbs))
    )


def _decode(variants: list[str], repeats: int, layers: int) -> dict[str, float]:
    shapes = [shape for _ in range(layers) for shape, count in LAYER.items() for _ in range(count)]
    matrices = [random_matrix(shape, seed) for seed, shape in enumerate(shapes)]
    size = sum(w.nbytes for w in matrices)
    plain = torch.ones(size // 4)
    inputs = {k: np.ones((1, k), np.float32) for _, k in LAYER}

    def token(variant: str) -> float:
        sterna_kernels.use_variant(variant)
        return cpu_seconds(lambda: [matmul(inputs[w.shape[1]], w) for w in matrices])

    systems: dict[str, Callable[[], float]] = {"read": lambda: cpu_seconds(lambda: plain.sum())}
    systems |= {name: partial(token, name) for name in variants}
    return {name: size / s / 1e9 for name, s in medians_in_turns(systems, repeats).items()}
