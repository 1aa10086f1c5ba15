"""How much longer products take with a scale for each group of columns: CPU time over that of a single scale.

Usage::

    OMP_NUM_THREADS=1 python deploy/experiments/group_scales.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

import sterna_kernels
from sterna_kernels import TernaryMatrix, matmul, matmul_t, packed_nbytes

SIDE = 2560
GROUPS = (64, 128, 256)
COPIES = 40
"""Distinct matrices that one row goes through, 64 MB: more than the caches hold for one core."""


def main() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((512, SIDE), np.float32)
    print(f"{'variant':<12}{'product':<10}" + "".join(f"{f'group {size}':>12}" for size in GROUPS))
    for variant in sterna_kernels.variants():
        if variant == "scalar":
            continue
        sterna_kernels.use_variant(variant)
        systems = {size: [matrix(rng, size) for _ in range(COPIES)] for size in (None, *GROUPS)}
        for product, call in (
            ("forward", lambda many: matmul(x, many[0])),
            ("backward", lambda many: matmul_t(x, many[0])),
            ("one row", lambda many: [matmul(x[:1], w) for w in many]),
        ):
            turns = [{size: cpu_seconds(call, many) for size, many in systems.items()} for _ in range(9)]
            times = {size: statistics.median(turn[size] for turn in turns) for size in systems}
            ratios = "".join(f"{times[size] / times[None]:>11.2f}x" for size in GROUPS)
            print(f"{variant:<12}{product:<10}{ratios}")


def matrix(rng: np.random.Generator, size: int | None) -> TernaryMatrix:
    """Random weights, with scales for groups of ``size`` columns unless that is None."""
    packed = rng.integers(0, 256, packed_nbytes((SIDE, SIDE)), np.uint8)
    packed &= ~((packed >> 1) & packed & 0x55)  # no code 11
    if size is None:
        return TernaryMatrix.from_packed(packed, (SIDE, SIDE), 0.01)
    scales = np.ones((SIDE, SIDE // size), np.float32)
    return TernaryMatrix.from_packed(packed, (SIDE, SIDE), 0.01, group_scales=scales, group_size=size)


def cpu_seconds(call: Callable[[list[TernaryMatrix]], object], many: list[TernaryMatrix]) -> float:
    call(many)
    before = time.process_time_ns()
    call(many)
    return (time.process_time_ns() - before) / 1e9


if __name__ == "__main__":
    main()
