"""What torch does with the same product and dense weights, here or in a process kept to AVX2.

As a program (``python -m sterna.bench.dense``) it answers one product a line, in CPU seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import IO, cast

import torch

from sterna.bench.timing import cpu_seconds

AVX2_ONLY = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
"""What keeps torch, oneDNN and MKL on AVX2."""

_TIMED_OPERATIONS = 500_000_000


@dataclass(frozen=True, slots=True)
class Product:
    """y = x W^T or dx = g W with W [n, k] and ``rows`` rows of x or g."""

    direction: str  # forward, backward, or backward x2: the gradient in two int8 limbs
    n: int
    k: int
    rows: int

    @property
    def is_forward(self) -> bool:
        return self.direction == "forward"

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.rows * self.n * self.k

    @property
    def calls(self) -> int:
        """How often to call it between two looks at the clock, which counts in microseconds."""
        return max(1, _TIMED_OPERATIONS // self.operations)


def torch_seconds(product: Product, dtype: torch.dtype = torch.float32) -> float:
    """CPU seconds of torch in this process, with weights, rows and results of this type."""
    w = torch.ones(product.n, product.k, dtype=dtype)
    a = torch.ones(product.rows, product.k if product.is_forward else product.n, dtype=dtype)
    right = w.T if product.is_forward else w
    out = torch.zeros(product.rows, right.shape[1], dtype=dtype)
    return cpu_seconds(lambda: torch.mm(a, right, out=out), calls=product.calls)


@contextmanager
def torch_on_avx2() -> Iterator[Callable[[Product], float]]:
    """Torch in a process of its own that may use nothing beyond AVX2."""
    with subprocess.Popen(
        [sys.executable, "-m", "sterna.bench.dense"],
        env=os.environ | AVX2_ONLY | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        requests, answers = cast(IO[str], process.stdin), cast(IO[str], process.stdout)  # both are pipes

        def run(product: Product) -> float:
            requests.write(json.dumps(asdict(product)) + "\n")
            requests.flush()
            return float(answers.readline())

        yield run
        requests.close()


def _serve() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        sys.stdout.write(f"{torch_seconds(Product(**json.loads(line)))}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
