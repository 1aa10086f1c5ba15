"""What every kernel computes, in NumPy: the variants in C++ return these very bits.

Shapes: M rows of activations or gradients, W [N, K] in {-1, 0, 1}. All arithmetic on floats is float32, each
operation rounded once, in the order written here.

    matmul     y[M, N]  = (x W^T) * scale * row_scales     x quantised per row to int8
    matmul_t   dx[M, K] = (g * row_scales) W * scale       g * row_scales quantised per row to int8 limbs,
                                                           by chance with one limb, to nearest with two

With group_scales [N, G] instead of row_scales, G = ceil(K / group_size), the columns of W fall into groups of
group_size, the last maybe shorter. x is quantised as a whole row all the same. With p_g the integer product
of its codes and the weights of group g, and s_g = group_scales[:, g]:

    matmul     y   = p_0 * (step * scale) * s_0, then for g = 1 .. G - 1   y = y + p_g * (step * scale) * s_g
    matmul_t   dx[:, group g] = (g * s_g) W_g * scale      g * s_g quantised per row, for each group anew

One group is the same as row_scales. Two planes of weights are two products and their sum. A product of low
rank is added last (``plus_thin``); bfloat16 results are float32 ones rounded to nearest, halves to even.

    int8_matmul     y[M, N]  = x (codes * scales[:, None])^T     x quantised per row to two limbs
    int8_matmul_t   dx[M, K] = g (codes * scales[:, None])       g * scales quantised per row and group of N

the last two with W = codes int8 [N, K]. A row that holds a NaN or an infinity gives a row of NaN.
"""

from collections.abc import Iterator
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
    group_scales: NDArray[np.float32] | None = None,
    group_size: int | None = None,
) -> NDArray[np.float32]:
    """y [M, N] of x [M, K] and weights [N, K]: BitNet's linear layer with per-row int8 activations."""
    codes, step = quantise(x, floor=ACTIVATION_FLOOR, limbs=1)
    if group_scales is not None:
        groups = _groups(weights, group_scales, group_size)
        parts = [
            _multiply(
                _dequantise(_integer_product(codes[:, group], weights[:, group].T), step, scale), scales
            )
            for group, scales in groups
        ]
        return _add_up(parts)
    y = _dequantise(_integer_product(codes, weights.T), step, scale)
    return y if row_scales is None else _multiply(y, row_scales)


def matmul_t(
    g: NDArray[np.float32],
    weights: NDArray[np.int8],
    scale: float,
    row_scales: NDArray[np.float32] | None = None,
    group_scales: NDArray[np.float32] | None = None,
    group_size: int | None = None,
    *,
    limbs: Limbs = 1,
) -> NDArray[np.float32]:
    """dx [M, K] of g [M, N] and weights [N, K]; two limbs keep 15 bits of a gradient, one keeps 7."""
    if group_scales is not None:
        groups = _groups(weights, group_scales, group_size)
        parts = [matmul_t(g, weights[:, group], scale, scales, limbs=limbs) for group, scales in groups]
        return np.concatenate(parts, axis=1)
    if row_scales is not None:
        g = _multiply(g, row_scales)
    codes, step = quantise(g, floor=GRADIENT_FLOOR, limbs=limbs, stochastic=limbs == 1)
    if limbs == 1:
        return _dequantise(_integer_product(codes, weights), step, scale)
    high, low = split(codes)
    # Both products are exact in float32 and so is the one with 256: the sum is the only rounding.
    both = np.float32(256) * _integer_product(high, weights) + _integer_product(low, weights)
    return _dequantise(both, step, scale)


def plus_thin(
    y: NDArray[np.float32], left: NDArray[np.float32], right: NDArray[np.float32]
) -> NDArray[np.float32]:
    """y [M, N] + left [M, R] right [R, N]: y + left_0 right_0, then + left_1 right_1, and so on."""
    for j in range(right.shape[0]):
        y = _add_up([y, _multiply(left[:, j, None], right[j])])
    return y


# Rows of an int8 matrix that share a step of a gradient's row: one large value rounds few others away.
INT8_GROUP = 1024


def int8_matmul(
    x: NDArray[np.float32], codes: NDArray[np.int8], scales: NDArray[np.float32]
) -> NDArray[np.float32]:
    """y [M, N] of x [M, K], codes int8 [N, K] and scales [N], K up to 2^16."""
    return _multiply(_two_limb_product(x, codes.T), scales)


def int8_matmul_t(
    g: NDArray[np.float32], codes: NDArray[np.int8], scales: NDArray[np.float32]
) -> NDArray[np.float32]:
    """dx [M, K] of g [M, N], codes int8 [N, K] and scales [N]: groups of N are added up in their order."""
    dx = np.zeros((g.shape[0], codes.shape[1]), np.float32)
    scaled = _multiply(g, scales)
    for first in range(0, codes.shape[0], INT8_GROUP):
        group = slice(first, first + INT8_GROUP)
        with np.errstate(over="ignore", invalid="ignore"):
            dx += _two_limb_product(scaled[:, group], codes[group])
    return dx


def quantise(
    x: NDArray[np.float32], *, floor: np.float32, limbs: Limbs, stochastic: bool = False
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Codes int32 [M, K] within +-LIMIT, and the step [M] that one unit of each row stands for.

    Rounds to nearest, halves to even; or, ``stochastic``, down after adding ``dither``: then the mean of a
    code over all draws is the value itself.
    """
    limit = np.float32(LIMIT[limbs])
    magnitude = np.max(np.abs(x), axis=1, initial=0.0)
    largest = np.maximum(magnitude, floor)
    finite = np.isfinite(largest)
    safe = np.where(finite, largest, floor).astype(np.float32)
    scaled = np.where(finite[:, None], x, np.float32(0)) * (limit / safe)[:, None]
    if stochastic:
        codes = np.clip(np.floor(scaled + dither(magnitude, x.shape[1])), -limit, limit)
    else:
        codes = np.rint(scaled)
    step = np.where(finite, safe / limit, np.float32(np.nan)).astype(np.float32)
    return codes.astype(np.int32), step


def dither(largest: NDArray[np.float32], columns: int) -> NDArray[np.float32]:
    """Numbers in [0, 1), multiples of 2**-16, for each row and column: float32 [M, columns].

    They come from counters alone: the bits of the row's largest magnitude, the number of the row, the column.
    """
    rows = np.arange(largest.size, dtype=np.uint32)
    key = _mixed(largest.astype(np.float32).view(np.uint32) ^ _mixed(rows))
    h = key[:, None] + np.arange(columns, dtype=np.uint32) * np.uint32(0x9E3779B9)
    h = (h ^ h >> np.uint32(15)) * np.uint32(0x2C1B3C6D)
    drawn = (h >> np.uint32(16)).astype(np.float32)
    return _multiply(drawn, np.float32(2.0**-16))


def split(codes: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """High and low limb: codes = 256 * high + low, high in [-127, 127], low in [-128, 127]."""
    high = (codes + 128) >> 8
    return high, codes - 256 * high


def _mixed(h: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """A hash of 32 bits; products wrap."""
    h = (h ^ h >> np.uint32(16)) * np.uint32(0x7FEB352D)
    h = (h ^ h >> np.uint32(15)) * np.uint32(0x846CA68B)
    return h ^ h >> np.uint32(16)


def _groups(
    weights: NDArray[np.int8], group_scales: NDArray[np.float32], group_size: int | None
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """The columns of each group, and its scales [N]."""
    size = weights.shape[1] if group_size is None else group_size
    for index, first in enumerate(range(0, weights.shape[1], size)):
        yield slice(first, first + size), group_scales[:, index]


def _add_up(parts: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    total = parts[0]
    for part in parts[1:]:
        # Infinities of both signs make a NaN, as in C++.
        with np.errstate(over="ignore", invalid="ignore"):
            total = total + part
    return total


def _two_limb_product(x: NDArray[np.float32], codes: NDArray[np.int8]) -> NDArray[np.float32]:
    quantised, step = quantise(x, floor=GRADIENT_FLOOR, limbs=2)
    return _multiply(_integer_product(quantised, codes), step[:, None])


def _integer_product(a: NDArray[np.int32], b: NDArray[np.int8]) -> NDArray[np.float32]:
    # A float64 product of integers is exact while every partial sum stays below 2^53; here below 2^38.
    return (a.astype(np.float64) @ b.astype(np.float64)).astype(np.float32)


def _dequantise(total: NDArray[np.float32], step: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    return _multiply(total, _multiply(step, np.float32(scale))[:, None])


def _multiply(a: NDArray[np.float32], b: NDArray[np.float32] | np.float32) -> NDArray[np.float32]:
    # Products beyond float32 become infinite, as in C++.
    with np.errstate(over="ignore", invalid="ignore"):
        return a * b
