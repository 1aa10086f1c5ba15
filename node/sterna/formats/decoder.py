"""What the writers of whole models ask of a base: its shape, its weights, its tokenizer, and its dialogue."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sterna_kernels import TernaryMatrix

BLOCK_ROWS = 4096
"""40 MiB of float32 at a hidden size of 2,560."""

Rows = tuple[NDArray[np.int8], NDArray[np.float32]]


class Shape(Protocol):
    """Sizes in elements, and which of the decoders it is (``sterna.train.architecture``)."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_size(self) -> int: ...
    @property
    def ffn_size(self) -> int: ...
    @property
    def rope_theta(self) -> float: ...
    @property
    def norm_eps(self) -> float: ...
    @property
    def activation(self) -> str: ...
    @property
    def sub_norms(self) -> bool: ...
    @property
    def gated(self) -> bool: ...
    @property
    def tied_embeddings(self) -> bool: ...
    @property
    def max_context(self) -> int: ...

    def linears(self) -> list[tuple[str, int, int]]:
        """(name, out, in) of every ternary matrix."""

    def vectors(self) -> list[tuple[str, int]]:
        """(name, size) of every norm weight."""


class TernaryDecoder(Protocol):
    """An open base (``sterna.train.base``)."""

    @property
    def name(self) -> str: ...
    @property
    def provenance(self) -> str: ...
    @property
    def digest(self) -> bytes: ...
    @property
    def architecture(self) -> Shape: ...
    @property
    def tokenizer_json(self) -> bytes: ...
    @property
    def embedding(self) -> Rows: ...
    @property
    def head(self) -> Rows: ...

    def planes(self, name: str) -> tuple[TernaryMatrix, ...]:
        """The matrices whose sum is the linear ``name``."""

    def vector(self, name: str) -> NDArray[np.float32]:
        """One norm's weights."""


@dataclass(frozen=True, slots=True)
class Dialogue:
    """How a base is talked to.

    Attributes:
        template: a Jinja template over ``messages`` and ``add_generation_prompt``.
        opening: the token before every text; None if there is none.
        closing: the token that ends an answer; None if the base has none.
    """

    template: str
    opening: str | None
    closing: str | None


def weights_of(planes: tuple[TernaryMatrix, ...]) -> NDArray[np.float32]:
    """The linear that the planes add up to, float32 [out, in], a fresh array."""
    total = _dense(planes[0])
    for plane in planes[1:]:
        total += _dense(plane)
    return total


def row_blocks(rows: Rows) -> Iterator[NDArray[np.float32]]:
    """An embedding or a head, float32 [V, D], in blocks of rows: as a whole it may take gigabytes."""
    codes, scale = rows
    for start in range(0, len(codes), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        yield codes[block] * scale[block, None]


def _dense(plane: TernaryMatrix) -> NDArray[np.float32]:
    weights = plane.codes() * np.float32(plane.scale)
    if plane.row_scales is not None:
        weights *= plane.row_scales[:, None]
    if plane.group_scales is not None and plane.group_size is not None:
        weights *= np.repeat(plane.group_scales, plane.group_size, axis=1)[:, : plane.shape[1]]
    return weights
