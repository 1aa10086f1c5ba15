"""What every kernel computes, in NumPy: the variants in C++ return these very bits.

Shapes: M rows of activations or gradients, W [N, K] in {-1, 0, 1}. All arithmetic on floats is float32, each
operation rounded once, in the order written here.

    matmul     y[M, N]  = (x W^T) * scale * row_scales     x quantised per row to int8
    matmul_t   dx[M, K] = (g * row_scales) W * scale       g * row_scales quantised per row to int8 limbs

A row that holds a NaN or an infinity gives a row of NaN.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Limbs = Literal[1, 2]

# Largest absolute value of a row after quantisation: 127, and 127 * 256 for two limbs (high * 256 + low).
LIMIT = {1: 127, 2: 127 * 256}

# BitNet b1.58 takes an activation row with a smaller largest value as if it had this one.
ACTIVATION_FLOOR = np.float32(1e-5)

# Gradients are small by nature: this floor only keeps LIMIT / floor finite and floor / LIMIT normal.
GRADIENT_FLOOR = np.float32(2.0**-100)


def matmul(
    x: NDArray[np.float32],
    weights: NDArray[np.int8],
    scale: float,
    row_scales: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """y [M, N] of x [M, K] and weights [N, K]: BitNet's linear layer with per-row int8 activations."""
    codes, step = quantise(x, floor=ACTIVATION_FLOOR, limbs=1)
    y = _dequantise(_integer_product(codes, weights.T), step, scale)
    return y if row_scales is None else _multiply(y, row_scales)


def matmul_t(
    g: NDArray[np.float32],
    weights: NDArray[np.int8],
    scale: float,
    row_scales: NDArray[np.float32] | None = None,
    *,
    limbs: Limbs = 1,
) -> NDArray[np.float32]:
    """dx [M, K] of g [M, N] and weights [N, K]; two limbs keep 15 bits of a gradient, one keeps 7."""
    if row_scales is not None:
        g = _multiply(g, row_scales)
    codes, step = quantise(g, floor=GRADIENT_FLOOR, limbs=limbs)
    if limbs == 1:
        return _dequantise(_integer_product(codes, weights), step, scale)
    high, low = split(codes)
    # Both products are exact in float32 and so is the one with 256: the sum is the only rounding.
    both = np.float32(256) * _integer_product(high, weights) + _integer_product(low, weights)
    return _dequantise(both, step, scale)


def quantise(
    x: NDArray[np.float32], *, floor: np.float32, limbs: Limbs
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Codes int32 [M, K] within +-LIMIT, and the step [M] that one unit of each row stands for.

    Rounds to nearest, halves to even.
    """
    limit = np.float32(LIMIT[limbs])
    largest = np.maximum(np.max(np.abs(x), axis=1, initial=0.0), floor)
    finite = np.isfinite(largest)
    safe = np.where(finite, largest, floor).astype(np.float32)
    codes = np.rint(np.where(finite[:, None], x, np.float32(0)) * (limit / safe)[:, None])
    step = np.where(finite, safe / limit, np.float32(np.nan)).astype(np.float32)
    return codes.astype(np.int32), step


def split(codes: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """High and low limb: codes = 256 * high + low, high in [-127, 127], low in [-128, 127]."""
    high = (codes + 128) >> 8
    return high, codes - 256 * high


def _integer_product(a: NDArray[np.int32], b: NDArray[np.int8]) -> NDArray[np.float32]:
    # A float64 product of integers is exact while every partial sum stays below 2^53; here below 2^25.
    return (a.astype(np.float64) @ b.astype(np.float64)).astype(np.float32)


def _dequantise(total: NDArray[np.float32], step: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    return _multiply(total, _multiply(step, np.float32(scale))[:, None])


def _multiply(a: NDArray[np.float32], b: NDArray[np.float32] | np.float32) -> NDArray[np.float32]:
    # Products beyond float32 become infinite, as in C++.
    with np.errstate(over="ignore", invalid="ignore"):
        return a * b
