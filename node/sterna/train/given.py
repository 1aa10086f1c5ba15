"""An adapter that a file gives as matrices, with no scheme and no integers behind them: to use alone.

The file is a safetensors file with ``<linear>.a`` [R, i] and ``<linear>.b`` [o, R] of each adapted linear,
float32, and what a correction is scaled by is in B.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import Tensor

from sterna.errors import ConfigError
from sterna_kernels.torch import TernaryLinear
from sterna_kernels.torch_layer import LINEARS, NO_ADAPTER, LowRank
from sterna_kernels.torch_thin import product, weights_of


class Given:
    """y += (x A^T) B^T on every linear that it has (``sterna.train.model.Correction``)."""

    def __init__(self, factors: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]]) -> None:
        """
        Args:
            factors: A [R, i] and B [o, R] by linear ("layers.0.q").
        """
        self._factors = {
            name: (torch.tensor(a), torch.tensor(b).T.contiguous()) for name, (a, b) in factors.items()
        }

    def applied(self, name: str, linear: TernaryLinear, x: Tensor, *, to_bfloat16: bool = False) -> Tensor:
        """y [.., o] of the linear ``name`` at ``x`` [.., i], corrected and, if asked, rounded."""
        if name not in self._factors:
            y = linear.forward(x)
            return y.to(torch.bfloat16) if to_bfloat16 else y
        a, right = self._factors[name]
        return product(x, weights_of(linear), a, right, to_bfloat16=to_bfloat16)[0]

    def low_ranks(self, layer: int) -> list[LowRank]:
        """The factors of each linear of a layer, as a layer takes them without gradients."""
        return [self._low_rank(f"layers.{layer}.{name}") for name in LINEARS]

    def _low_rank(self, name: str) -> LowRank:
        if name not in self._factors:
            return NO_ADAPTER
        a, right = self._factors[name]
        return a.data_ptr(), right.data_ptr(), a.shape[0]


def read_given(path: Path, linears: Mapping[str, tuple[int, int]]) -> Given:
    """The adapter in the file.

    Args:
        linears: (out, in) of the base's linears, by name.

    Raises:
        ConfigError: the file is none, or has matrices that do not fit the base.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    factors = {}
    for name in {key.rpartition(".")[0] for key in tensors}:
        a, b = tensors.get(f"{name}.a"), tensors.get(f"{name}.b")
        if a is None or b is None or len(a) != b.shape[1] or (len(b), a.shape[1]) != linears.get(name):
            raise ConfigError(f"{path}: the adapter's {name} does not fit the base")
        factors[name] = (a, b)
    return Given(factors)
