"""Ternary weights as checkpoints hold them, exactly: packed with scales beside them, or as plain numbers.

Packed (transformers, integrations/bitnet.py): uint8 [R, in], R = ceil(out / 4); bits 2i and 2i+1 of a byte in
row r hold the code, weight + 1, of row i * R + r.

Shapes: weights [out, in].
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.errors import ConfigError
from sterna_kernels import TernaryMatrix
from sterna_kernels.layout import BLOCK_COLUMNS

PER_BYTE = 4


def unpacked(packed: NDArray[np.uint8], out: int, name: str) -> NDArray[np.int8]:
    """The codes -1, 0 and 1 of packed weights.

    Raises:
        ConfigError: there are not as many rows as ``out`` needs, or a code is none of the three.
    """
    if packed.ndim != 2 or packed.shape[0] != -(-out // PER_BYTE):
        raise ConfigError(f"{name} has shape {list(packed.shape)}, {out} packed rows need another")
    codes = np.concatenate([packed >> 2 * place & 3 for place in range(PER_BYTE)])[:out]
    if (codes == 3).any():
        raise ConfigError(f"{name} is not ternary: it holds a code that stands for no weight")
    return codes.astype(np.int8) - np.int8(1)


def packed(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """The bytes that ``unpacked`` takes: [out / 4, in] of codes whose rows are a multiple of four."""
    quarters = (codes + np.int8(1)).view(np.uint8).reshape(PER_BYTE, -1, codes.shape[1])
    whole: NDArray[np.uint8] = quarters[0].copy()
    for place in range(1, PER_BYTE):
        whole |= quarters[place] << np.uint8(2 * place)
    return whole


def scaled(codes: NDArray[np.int8], scales: NDArray[np.float32], name: str) -> TernaryMatrix:
    """Codes with one scale, one a row [out] or [out, 1], or one a row and group [out, groups].

    Raises:
        ConfigError: the scales have another shape, or groups are no multiple of 64 columns.
    """
    out, in_ = codes.shape
    if scales.size == 1:
        return TernaryMatrix.from_codes(codes, float(scales.reshape(())))
    if scales.shape in ((out,), (out, 1)):
        return TernaryMatrix.from_codes(codes, 1.0, row_scales=scales.reshape(out))
    groups = scales.shape[1] if scales.ndim == 2 and scales.shape[0] == out else 0
    if not groups or in_ % groups or in_ // groups % BLOCK_COLUMNS:
        raise ConfigError(
            f"{name} has scales of shape {list(scales.shape)} for weights {[out, in_]}: one, one a row, or "
            f"one a row and group of a multiple of {BLOCK_COLUMNS} columns is needed"
        )
    return TernaryMatrix.from_codes(codes, 1.0, group_scales=scales, group_size=in_ // groups)


def found_ternary(weights: NDArray[np.float32], name: str) -> TernaryMatrix:
    """Numbers that are -s, 0 or s, with as few scales s as there can be: one, or one a row, or more.

    Raises:
        ConfigError: they are not; the message names the first row and columns that have several magnitudes.
    """
    out, in_ = weights.shape
    # Without whole blocks of 64 columns there are no groups, and a row is the smallest that can have a scale.
    width = BLOCK_COLUMNS if in_ % BLOCK_COLUMNS == 0 else in_
    magnitudes = np.abs(weights).reshape(out, -1, width)
    blocks = _shared(magnitudes)
    if blocks is None:
        row, block = _first_mixed(magnitudes)
        raise ConfigError(
            f"{name} is not ternary: row {row} has several magnitudes in columns {block * width} to "
            f"{block * width + width - 1}; import a checkpoint whose weights are -s, 0 and s"
        )
    codes = np.sign(weights).astype(np.int8)
    count = blocks.shape[1]
    for size in (size for size in range(count, 0, -1) if count % size == 0):
        scales = _shared(blocks.reshape(out, count // size, size))
        if scales is not None:
            break
    assert scales is not None  # for mypy: blocks of their own always agree with themselves
    one = _shared(scales.reshape(1, 1, -1)) if scales.shape[1] == 1 else None
    return scaled(codes, scales if one is None else one.reshape(1), name)


def is_ternary(weights: NDArray[Any]) -> bool:
    """Whether the numbers are -1, 0 and 1 alone."""
    return bool((weights == np.sign(weights)).all())


def _shared(magnitudes: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """The magnitude [a, b] that all but zeros share of [a, b, n], 0 without any; None if they do not."""
    largest: NDArray[np.float32] = magnitudes.max(axis=2)
    return largest if not _mixed(magnitudes, largest).any() else None


def _mixed(magnitudes: NDArray[np.float32], largest: NDArray[np.float32]) -> NDArray[np.bool_]:
    mixed: NDArray[np.bool_] = (magnitudes != 0) & (magnitudes != largest[..., None])
    return mixed


def _first_mixed(magnitudes: NDArray[np.float32]) -> tuple[int, int]:
    row, block, _ = np.argwhere(_mixed(magnitudes, magnitudes.max(axis=2)))[0].tolist()
    return row, block
