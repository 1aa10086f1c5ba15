"""How fast the products are, beside torch: python kernels/bench/gemm.py [--json]

One thread, CPU time, median of several calls. The systems take turns within each repetition, so that a change
of clock or a busy neighbour hits all of them alike; only ratios within one run mean something. Weights are
warm in the cache for products (one matrix again and again), cold for decoding (30 layers of distinct ones).
Times of ternary products hold everything from float32 to float32: quantisation, unpacking, product, scale.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import IO, Literal, cast

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

import sterna_kernels
from sterna_kernels import TernaryMatrix, matmul, matmul_t, packed_nbytes

# The linears of BitNet-b1.58-2B-4T, out x in, and how many of each a layer has.
LAYER = {(2560, 2560): 2, (640, 2560): 2, (6912, 2560): 2, (2560, 6912): 1}
LAYERS = 30

ROWS = [512, 64, 1]
DIRECTIONS = ["forward", "backward", "backward x2"]  # x2: the gradient in two int8 limbs
VARIANTS = [name for name in sterna_kernels.variants() if name != "scalar"]

# What keeps torch, oneDNN and MKL on AVX2.
AVX2_ONLY = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


@dataclass(frozen=True, slots=True)
class Task:
    direction: str  # of DIRECTIONS
    n: int
    k: int
    rows: int

    @property
    def operations(self) -> int:
        return 2 * self.rows * self.n * self.k


@dataclass(frozen=True, slots=True)
class Row:
    task: Task
    gops: dict[str, float]


System = Callable[[Task], float]  # CPU seconds


def ternary(variant: str, matrices: dict[tuple[int, int], TernaryMatrix]) -> System:
    """One of our variants on these matrices."""

    def run(task: Task) -> float:
        w = matrices[task.n, task.k]
        forward = task.direction == "forward"
        a = np.random.default_rng(1).standard_normal((task.rows, task.k if forward else task.n), np.float32)
        limbs: Literal[1, 2] = 2 if task.direction == "backward x2" else 1
        sterna_kernels.use_variant(variant)
        return measure((lambda: matmul(a, w)) if forward else (lambda: matmul_t(a, w, limbs=limbs)))

    return run


def torch_dense(task: Task, dtype: torch.dtype = torch.float32) -> float:
    """torch in this process, with weights of this type."""
    w = torch.ones(task.n, task.k, dtype=dtype)
    forward = task.direction == "forward"
    a = torch.ones(task.rows, task.k if forward else task.n, dtype=dtype)
    return measure((lambda: a @ w.T) if forward else (lambda: a @ w))


@contextmanager
def torch_in_a_child(environment: dict[str, str]) -> Iterator[System]:
    """torch in a process of its own, which may use other instruction sets."""
    command = [sys.executable, __file__, "--child"]
    with subprocess.Popen(
        command, env=os.environ | environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        requests, answers = cast(IO[str], process.stdin), cast(IO[str], process.stdout)  # both are pipes

        def run(task: Task) -> float:
            print(json.dumps(asdict(task)), file=requests, flush=True)
            return float(answers.readline())

        yield run
        requests.close()


def measure(product: Callable[[], object]) -> float:
    """CPU seconds of one call, after one that warms up."""
    product()
    before = time.process_time_ns()
    product()
    return (time.process_time_ns() - before) / 1e9


def random_matrix(shape: tuple[int, int], seed: int = 0) -> TernaryMatrix:
    packed = np.random.default_rng(seed).integers(0, 256, packed_nbytes(shape), np.uint8)
    # A quarter of the bit pairs would be the unused code 11: here its low bit is cleared.
    packed &= ~((packed >> 1) & packed & 0x55)
    return TernaryMatrix.from_packed(packed, shape, 0.01)


def products(repeats: int) -> list[Row]:
    """Speed of every system for every task."""
    matrices = {shape: random_matrix(shape) for shape in LAYER}
    tasks = [
        Task(direction, *shape, rows)
        for shape in LAYER
        for rows in ROWS
        for direction in DIRECTIONS
        if rows > 1 or direction == "forward"
    ]
    with torch_in_a_child(AVX2_ONLY) as torch_avx2:
        systems: dict[str, System] = {"torch": torch_dense, "torch avx2": torch_avx2}
        systems["torch bf16"] = partial(torch_dense, dtype=torch.bfloat16)
        systems |= {name: ternary(name, matrices) for name in VARIANTS}
        return [Row(task, speeds(task, systems, repeats)) for task in tasks]


def speeds(task: Task, systems: dict[str, System], repeats: int) -> dict[str, float]:
    """GOPS of each system: the median of calls in turns."""
    turns = [{name: run(task) for name, run in systems.items()} for _ in range(repeats)]
    print(".", end="", file=sys.stderr, flush=True)
    return {name: task.operations / statistics.median(t[name] for t in turns) / 1e9 for name in systems}


def decode(repeats: int, layers: int) -> dict[str, float]:
    """GB/s of weights for one token through distinct layers, and of merely reading as many bytes."""
    shapes = [shape for _ in range(layers) for shape, count in LAYER.items() for _ in range(count)]
    matrices = [random_matrix(shape, seed) for seed, shape in enumerate(shapes)]
    size = sum(w.nbytes for w in matrices)
    plain = torch.ones(size // 4)
    inputs = {k: np.ones((1, k), np.float32) for _, k in LAYER}

    def token() -> None:
        for w in matrices:
            matmul(inputs[w.shape[1]], w)

    figures: dict[str, list[float]] = {"read": []}
    for _ in range(repeats):
        figures["read"].append(size / measure(lambda: plain.sum()) / 1e9)
        for name in VARIANTS:
            sterna_kernels.use_variant(name)
            figures.setdefault(name, []).append(size / measure(token) / 1e9)
    return {name: statistics.median(values) for name, values in figures.items()}


def report(rows: list[Row], reading: dict[str, float]) -> None:
    names = list(rows[0].gops)
    print("GOPS (1 multiply or add = 1 op), one thread")
    print(f"{'M':>4} {'direction':<12}{'N x K':<12}" + "".join(f"{name:>12}" for name in names))
    for count in ROWS:
        for direction in DIRECTIONS:
            chosen = [r for r in rows if (r.task.rows, r.task.direction) == (count, direction)]
            for r in chosen:
                line = f"{count:>4} {direction:<12}{f'{r.task.n}x{r.task.k}':<12}"
                print(line + "".join(f"{r.gops[name]:>12.1f}" for name in names))
            if chosen:
                means = {name: statistics.geometric_mean([r.gops[name] for r in chosen]) for name in names}
                print(f"{'':>4} {'':<12}{'mean':<12}" + "".join(f"{means[name]:>12.1f}" for name in names))
                ratios = {
                    name: means[name] / means["torch avx2" if name == "avx2" else "torch"] for name in names
                }
                print(
                    f"{'':>4} {'':<12}{'x torch*':<12}" + "".join(f"{ratios[name]:>12.2f}" for name in names)
                )
    print("* avx2 over torch avx2, the others over torch; means are geometric\n")
    print(f"decoding, weights cold: reading alone {reading['read']:.1f} GB/s")
    for name, speed in reading.items():
        if name != "read":
            print(f"  {name:<12}{speed:6.1f} GB/s   {speed / reading['read']:.0%} of reading")


def serve() -> None:
    for line in sys.stdin:
        print(torch_dense(Task(**json.loads(line))), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--repeats", type=int, default=15, help="calls whose median counts")
    parser.add_argument("--layers", type=int, default=LAYERS, help="layers of distinct weights for decoding")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.child:
        serve()
        return
    rows, reading = products(options.repeats), decode(options.repeats, options.layers)
    if options.json:
        print(json.dumps({"products": [asdict(r) for r in rows], "decode_gb_per_s": reading}, indent=1))
    else:
        report(rows, reading)


if __name__ == "__main__":
    main()
