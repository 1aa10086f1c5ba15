"""A along what goes into a linear, in place of drawn signs: for trials that the protocol has no scheme for.

Every peer would need the same A to the bit, so it could only come with the base. Here it is found on the
texts that rates are tuned on, which no reported loss is of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from averaging_learning import TOKENS
from numpy.typing import NDArray
from torch import Tensor

from sterna.train.lora import drawn_a
from sterna.train.model import Decoder
from sterna.train.tokens import Corpus
from sterna_kernels.torch import TernaryLinear
from sterna_protocol.swarm.charter import AdapterScheme

TOKENS_OF_A_PART = 4096


@dataclass(frozen=True, slots=True)
class Directions:
    """The principal directions of each linear's inputs: variances [i], largest first, and rows [i, i]."""

    of: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]

    def a(self, scheme: AdapterScheme, subspace: int, name: str) -> NDArray[np.float32]:
        """A [r, i]: the next r directions, each so long that x A^T varies as much as with drawn rows."""
        drawn = drawn_a(scheme, subspace, name)
        variances, rows = self.of[name]
        mine = slice(subspace * scheme.rank, (subspace + 1) * scheme.rank)
        lengths = np.linalg.norm(drawn[0]) * np.sqrt(variances.mean() / variances[mine])
        return (rows[mine] * lengths[:, None]).astype(np.float32)


def input_directions(decoder: Decoder, texts: Sequence[Sequence[Corpus]]) -> Directions:
    """Of the base's linears, over the first tokens of each part."""
    inputs = _Inputs()
    for parts in texts:
        for corpus in parts:
            ids = np.concatenate([document.ids for document in corpus.train])[:TOKENS_OF_A_PART]
            rows = ids[: ids.size // TOKENS * TOKENS].reshape(-1, TOKENS).astype(np.int64)
            decoder.hidden(rows, lora=inputs)
    found = {}
    for name, squares in inputs.squares.items():
        variances, columns = np.linalg.eigh(squares / inputs.tokens[name])
        found[name] = variances[::-1].copy(), columns.T[::-1].copy()
    return Directions(found)


class _Inputs:
    """A correction that corrects nothing and adds up x x^T."""

    def __init__(self) -> None:
        self.squares: dict[str, NDArray[np.float64]] = {}
        self.tokens: dict[str, int] = {}

    def applied(self, name: str, linear: TernaryLinear, x: Tensor, *, to_bfloat16: bool = False) -> Tensor:
        rows = x.detach().double().reshape(-1, x.shape[-1])
        self.squares[name] = self.squares.get(name, 0) + (rows.T @ rows).numpy()
        self.tokens[name] = self.tokens.get(name, 0) + rows.shape[0]
        y = linear.forward(x)
        return y.to(torch.bfloat16) if to_bfloat16 else y

    def low_ranks(self, layer: int) -> None:
        """It wants to see what goes in."""
