"""The output head of a large base: our int8 products beside torch's, each kept to one instruction set.

Both take float32 rows apart into two int8 limbs with the same step. CPU seconds, medians of calls in turns.

Usage::

    OMP_NUM_THREADS=1 python deploy/experiments/head.py amx
    OMP_NUM_THREADS=1 ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI python deploy/experiments/head.py avx512vnni
    OMP_NUM_THREADS=1 ONEDNN_MAX_CPU_ISA=AVX2 python deploy/experiments/head.py avx2
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import sterna_kernels
from sterna_kernels import Int8Matrix, int8_matmul, int8_matmul_t
from sterna_kernels.ceilings import read_all

VOCABULARY, WIDTH, BLOCK = 128_256, 2560, 4096
LIMIT = 127 * 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("variant", choices=sterna_kernels.variants())
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sterna_kernels.use_variant(options.variant)
    rng = np.random.default_rng(0)
    codes = rng.integers(-127, 128, (VOCABULARY, WIDTH), np.int8)
    scales = rng.random(VOCABULARY, np.float32)
    head = Int8Matrix(codes, scales)
    blocks = [
        Int8Matrix(codes[start : start + BLOCK], scales[start : start + BLOCK])
        for start in range(0, VOCABULARY, BLOCK)
    ]
    h, one = rng.standard_normal((512, WIDTH), np.float32), rng.standard_normal((1, WIDTH), np.float32)
    g = [rng.random((512, block.shape[0]), np.float32) for block in blocks]
    shared, steps = torch.from_numpy(codes), torch.from_numpy(scales)
    theirs = list(zip(shared.split(BLOCK), steps.split(BLOCK), strict=True))
    rows = {
        "logits of 512 tokens": (
            lambda: [int8_matmul(h, block) for block in blocks],
            lambda: forward(torch.from_numpy(h), theirs),
        ),
        "their gradient pulled back": (
            lambda: [int8_matmul_t(part, block) for part, block in zip(g, blocks, strict=True)],
            lambda: [backward(torch.from_numpy(part), *block) for part, block in zip(g, theirs, strict=True)],
        ),
        "logits of one token": (
            lambda: int8_matmul(one, head),
            lambda: forward(torch.from_numpy(one), theirs),
        ),
        "reading the head": (lambda: read_all(codes.reshape(-1).view(np.uint8), 4), lambda: None),
    }
    print(f"{options.variant}, CPU seconds{'':<14}{'ours':>8}{'torch':>8}")
    for name, (ours, torchs) in rows.items():
        turns = [(cpu_seconds(ours), cpu_seconds(torchs)) for _ in range(options.turns)]
        mine, other = (statistics.median(turn[i] for turn in turns) for i in (0, 1))
        print(f"  {name:<34}{mine:>8.4f}" + (f"{other:>8.4f}{other / mine:>8.2f}x" if other > 1e-4 else ""))


def forward(x: Tensor, blocks: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    limbs, step = two_limbs(x)
    return [joined(torch._int_mm(limbs, codes.T)).mul_(step).mul_(scales) for codes, scales in blocks]


def backward(g: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    limbs, step = two_limbs(g * scales)
    return joined(torch._int_mm(limbs, codes)).mul_(step)


def two_limbs(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 limbs, the high ones first, and the step of each row."""
    largest = torch.maximum(x.amax(1, keepdim=True), -x.amin(1, keepdim=True))
    codes = x.mul(LIMIT / largest).round_()
    high = codes.add(128).mul_(1 / 256).floor_()
    limbs = torch.empty(2 * x.shape[0], x.shape[1], dtype=torch.int8)
    limbs[: x.shape[0]] = high
    limbs[x.shape[0] :] = codes.add_(high, alpha=-256)
    return limbs, largest.div_(LIMIT)


def joined(sums: Tensor) -> Tensor:
    high, low = sums.chunk(2)
    return high.to(torch.float32).mul_(256).add_(low)


def cpu_seconds(call: Callable[[], object]) -> float:
    call()
    before = time.process_time_ns()
    call()
    return (time.process_time_ns() - before) / 1e9


if __name__ == "__main__":
    main()
