"""A base with random weights, drawn in packed form and written tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.train.architecture import Architecture
from sterna.train.base_layout import Plane
from sterna.train.base_writer import write_packed_base
from sterna_kernels import packed_nbytes

EMBEDDING_STEP = 1 / 127
"""Scale of the embedding's int8 codes: rows with elements within +-1."""


def write_random_base(path: Path, architecture: Architecture, *, name: str, seed: int = 0) -> None:
    """Write a base whose forward pass keeps its numbers near 1; the same seed gives the same file.

    Raises:
        StorageError: the file cannot be written.
    """
    rng = np.random.default_rng(seed)
    packed = {f"{key}.codes": packed_nbytes((out, in_)) for key, out, in_ in architecture.linears()}
    norms = dict(architecture.vectors())
    rows = architecture.vocab_size

    def tensor(key: str) -> NDArray[Any]:
        if key in packed:
            return np.take(_FOUR_WEIGHTS, rng.integers(0, 256, packed[key], np.uint8))
        if key in norms:
            return np.ones(norms[key], np.float32)
        if key.endswith(".scale"):
            return np.full(rows, EMBEDDING_STEP, np.float32)
        return rng.integers(-127, 128, (rows, architecture.hidden_size), np.int8)

    write_packed_base(
        path,
        architecture=architecture,
        # A sum of in_ inputs of variance 1 with weights that are zero a third of the time.
        planes={key: (Plane((1.5 / in_) ** 0.5),) for key, _, in_ in architecture.linears()},
        tensor=tensor,
        tokenizer_json=b"{}",
        name=name,
        provenance="random weights for benchmarks",
    )


def _four_weights() -> NDArray[np.uint8]:
    """A byte with four codes 0, 1, 2 for each of the 256 random bytes, nearly even."""
    number = np.arange(256) % 81
    codes = [number // 3**place % 3 << 2 * place for place in range(4)]
    lowest, low, high, highest = (np.asarray(code, np.uint8) for code in codes)
    return lowest | low | high | highest


_FOUR_WEIGHTS = _four_weights()
