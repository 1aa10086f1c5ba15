"""Helpers change no bit, whoever asks for them, and survive a fork."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from sterna_kernels import TernaryMatrix, matmul

ROWS, N, K = 300, 700, 500  # enough work to wake helpers


def product(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    w = TernaryMatrix.from_codes(rng.integers(-1, 2, (N, K), dtype=np.int8), 0.5)
    return matmul(rng.standard_normal((ROWS, K)).astype(np.float32), w)


def test_products_of_several_threads_at_once_do_not_mix():
    expected = [product(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for y, alone in zip(pool.map(product, range(4)), expected, strict=True):
                np.testing.assert_array_equal(y, alone)


FORKED = """
import multiprocessing, warnings
import numpy as np
import tests.kernels.test_threads as here
warnings.simplefilter("ignore")
here.product(1)  # starts helpers, which the child does not have
with multiprocessing.get_context("fork").Pool(1) as pool:
    assert (pool.apply(here.product, (1,)) == here.product(1)).all()
"""


def test_a_forked_child_starts_helpers_of_its_own():
    root = Path(__file__).parents[2]
    environment = {"OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=60, cwd=root, env=environment)
