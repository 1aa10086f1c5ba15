"""How fast the ternary products are, beside torch and llama.cpp, and as a share of what the machine allows.

One thread, float32 in and out or, like torch's own, bfloat16; times of ternary products hold everything:
quantisation, unpacking, product, scale. Results go where results have been before, for every system: the
pages of new memory are not a product's affair, and a training process keeps its own. Weights are warm in the
cache for products (one matrix again and again), cold for decoding (layers of distinct ones).
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import sterna_kernels
from sterna.bench.dense import Product, torch_on_avx2, torch_seconds
from sterna.bench.ggml import Ggml
from sterna.bench.limits import STREAMS, instruction_limits, read_seconds
from sterna.bench.shares import BFLOAT16
from sterna.bench.timing import cpu_seconds, medians_in_turns, wall_seconds
from sterna_kernels import TernaryMatrix, _native, matmul, matmul_t, packed_nbytes
from sterna_kernels._native import address
from sterna_kernels.reference import Limbs

LAYER = {(2560, 2560): 2, (640, 2560): 2, (6912, 2560): 2, (2560, 6912): 1}
"""The linears of BitNet-b1.58-2B-4T, out x in, and how many of each a layer has."""

ROWS = (512, 64, 1)
DIRECTIONS = ("forward", "backward", "backward x2")
GGML = "llama TQ2_0"

# They read and write bfloat16 themselves; the others convert.
IN_BFLOAT16 = ("amx", "avx512vnni")

Shape = tuple[int, int]
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Figure:
    """One product's speed on each system, in GOPS (a multiplication or addition is one operation)."""

    product: Product
    gops: dict[str, float]


@dataclass(frozen=True, slots=True)
class KernelReport:
    """All figures of one run.

    Attributes:
        limits: GOPS that the instructions allow, by the names of ``sterna_kernels.ceilings``.
        figures: GOPS of products.
        decode: GB/s of packed weights for one row through all layers, and ``read``: of merely reading memory.
        two_threads: how many times faster than one, by variant and rows, on the clock; empty on one core.
    """

    limits: dict[str, float]
    figures: list[Figure]
    decode: dict[str, float]
    two_threads: dict[str, dict[int, float]]


@dataclass(frozen=True, slots=True)
class Scope:
    """How much is measured: ``repeats`` turns, these shapes and rows, so many layers to decode."""

    repeats: int = 7
    layers: int = 30
    shapes: tuple[Shape, ...] = tuple(LAYER)
    rows: tuple[int, ...] = ROWS


def measure_kernels(scope: Scope, ggml_folder: Path | None, progress: Progress) -> KernelReport:
    """Measure limits, products, decoding and two threads; ``progress`` hears what is next."""
    torch.set_num_threads(1)
    variants = [name for name in sterna_kernels.variants() if name != "scalar"]
    in_use = sterna_kernels.variant()
    try:
        progress("limits of the machine")
        limits = instruction_limits(scope.repeats)
        with nullcontext() if ggml_folder is None else closing(Ggml(ggml_folder)) as ggml:
            figures = _products(variants, scope, ggml, progress)
        progress("decoding")
        with nullcontext() if ggml_folder is None else closing(Ggml(ggml_folder)) as ggml:
            decode = _decode(variants, scope, ggml)
        progress("two threads")
        return KernelReport(limits, figures, decode, _two_threads(variants, scope))
    finally:
        torch.set_num_threads(1)
        sterna_kernels.use_variant(in_use)


def random_matrix(shape: Shape, seed: int = 0) -> TernaryMatrix:
    """Random weights of this shape; what they are does not change the speed."""
    packed = np.random.default_rng(seed).integers(0, 256, packed_nbytes(shape), np.uint8)
    # A quarter of the bit pairs would be the unused code 11: here its low bit is cleared.
    packed &= ~((packed >> 1) & packed & 0x55)
    return TernaryMatrix.from_packed(packed, shape, 0.01)


def _products(variants: list[str], scope: Scope, ggml: Ggml | None, progress: Progress) -> list[Figure]:
    figures = []
    with torch_on_avx2() as avx2:
        for shape in scope.shapes:
            w = random_matrix(shape)
            progress(f"{shape[0]} x {shape[1]}")
            for rows in scope.rows:
                for direction in DIRECTIONS if rows > 1 else DIRECTIONS[:1]:
                    product = Product(direction, *shape, rows)
                    systems = {
                        "torch fp32": partial(torch_seconds, product),
                        "torch fp32 avx2": partial(avx2, product),
                        "torch bf16": partial(torch_seconds, product, torch.bfloat16),
                    }
                    if ggml is not None and product.is_forward:
                        theirs = ggml.product(*shape, rows)
                        systems[GGML] = partial(cpu_seconds, theirs, calls=product.calls)
                    for name in variants:
                        systems[name] = partial(_ternary_seconds, name, w, product)
                        if name in IN_BFLOAT16 and rows > 1:
                            systems[name + BFLOAT16] = partial(
                                _ternary_seconds, name, w, product, torch.bfloat16
                            )
                    seconds = medians_in_turns(systems, scope.repeats)
                    gops = {name: product.operations / s / 1e9 for name, s in seconds.items()}
                    figures.append(Figure(product, gops))
    return figures


def _ternary_seconds(
    variant: str, w: TernaryMatrix, product: Product, dtype: torch.dtype = torch.float32
) -> float:
    sterna_kernels.use_variant(variant)
    return cpu_seconds(_call(w, product, dtype), calls=product.calls)


def _call(w: TernaryMatrix, product: Product, dtype: torch.dtype = torch.float32) -> Callable[[], object]:
    width = product.k if product.is_forward else product.n
    a = np.random.default_rng(1).standard_normal((product.rows, width), np.float32)
    limbs: Limbs = 2 if product.direction == "backward x2" else 1
    if dtype is torch.bfloat16:
        return _narrow_call(w, product, torch.from_numpy(a).bfloat16(), limbs)
    if product.is_forward:
        y = matmul(a, w)
        return lambda: matmul(a, w, out=y)
    dx = matmul_t(a, w, limbs=limbs)
    return lambda: matmul_t(a, w, limbs=limbs, out=dx)


def _narrow_call(
    w: TernaryMatrix, product: Product, rows: torch.Tensor, limbs: Limbs
) -> Callable[[], object]:
    """What the torch operators call, which have no place for results."""
    y = torch.zeros(product.rows, product.n if product.is_forward else product.k, dtype=rows.dtype)
    weights = (address(w.packed), *w.shape, w.scale, 0, 0)
    is_narrow = {"to_bfloat16": True, "is_bfloat16": True}
    if product.is_forward:
        return lambda: _native.forward(*weights, rows.data_ptr(), product.rows, y.data_ptr(), **is_narrow)
    return lambda: _native.backward(*weights, rows.data_ptr(), product.rows, limbs, y.data_ptr(), **is_narrow)


def _decode(variants: list[str], scope: Scope, ggml: Ggml | None) -> dict[str, float]:
    """Each system's speed is in bytes of our packed weights, so that shares of ``read`` compare times."""
    shapes = [shape for _ in range(scope.layers) for shape in scope.shapes for _ in range(LAYER[shape])]
    memory = _plain_pages(sum(packed_nbytes(shape) for shape in shapes))
    matrices: list[TernaryMatrix] = []
    size = 0
    for seed, shape in enumerate(shapes):
        w = random_matrix(shape, seed)
        place = memory[size : size + w.nbytes]
        place[:] = w.packed
        matrices.append(TernaryMatrix.from_packed(place, shape, w.scale))
        size += w.nbytes
    inputs = {k: np.ones((1, k), np.float32) for _, k in scope.shapes}
    outputs = {n: np.zeros((1, n), np.float32) for n, _ in scope.shapes}

    def token(variant: str) -> float:
        sterna_kernels.use_variant(variant)
        return cpu_seconds(lambda: [matmul(inputs[w.shape[1]], w, out=outputs[w.shape[0]]) for w in matrices])

    reading = {f"read {streams}": partial(read_seconds, memory, streams) for streams in STREAMS}
    systems: dict[str, Callable[[], float]] = dict(reading)
    systems |= {name: partial(token, name) for name in variants}
    if ggml is not None:
        theirs = [ggml.product(*shape, 1) for shape in shapes]
        systems[GGML] = lambda: cpu_seconds(lambda: [call() for call in theirs])
    speeds = {name: size / s / 1e9 for name, s in medians_in_turns(systems, scope.repeats).items()}
    return {"read": max(speeds[name] for name in reading)} | {
        name: speed for name, speed in speeds.items() if name not in reading
    }


def _plain_pages(size: int) -> NDArray[np.uint8]:
    """Memory in pages of 4 KiB, like a mapped base file: NumPy's own, of 2 MiB, a core reads faster."""
    pages = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, np.uint8)


def _two_threads(variants: list[str], scope: Scope) -> dict[str, dict[int, float]]:
    """Best times of calls in turns: what else runs takes a core from two threads, and not from one."""
    if len(os.sched_getaffinity(0)) < 2:
        return {}
    w = random_matrix(scope.shapes[0])
    speedups: dict[str, dict[int, float]] = {}
    for name in variants:
        sterna_kernels.use_variant(name)
        for rows in scope.rows:
            call = _call(w, Product("forward", *w.shape, rows))
            best = {1: float("inf"), 2: float("inf")}
            for _ in range(4 * scope.repeats):
                for threads in best:
                    torch.set_num_threads(threads)
                    best[threads] = min(best[threads], wall_seconds(call))
            speedups.setdefault(name, {})[rows] = best[1] / best[2]
    return speedups
