"""The packed layout of a ternary matrix in NumPy; kernels/src/layout.h draws the same one for C++.

A matrix [N, K] is cut into blocks of 16 rows x 64 columns, stored row of blocks after row of blocks. A block
is 256 bytes, four quarters of 64 bytes; quarter q holds the columns 16q .. 16q + 15 of the block:

    byte 64*q + 4*n + kk of a block, bits 2j and 2j+1   <->   row n, column 16*q + 4*j + kk

    bits     7 6     5 4     3 2     1 0            n = 0..15   q, j, kk = 0..3
    column  12+kk   8+kk    4+kk      kk  (+ 16q)   code = weight + 1: 00 = -1, 01 = 0, 10 = +1

N is padded to a multiple of 16 and K to a multiple of 64 with weight 0 (code 01). Code 11 is not used.
"""

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 16
BLOCK_COLUMNS = 64
BLOCK_BYTES = BLOCK_ROWS * BLOCK_COLUMNS // 4

# Longest side of a matrix. A sum of 2^17 products of an int8 and a weight stays within +-2^24, so that it is
# exact in float32; the sum over the codes 0..2, before the correction, stays within +-2^25, far inside int32.
MAX_SIDE = 1 << 17


def packed_nbytes(shape: tuple[int, int]) -> int:
    """Size in bytes of the packed form of a matrix of this shape [N, K].

    Raises:
        ValueError: a side is below 1 or above MAX_SIDE.
    """
    rows, columns = check_shape(shape)
    return -(-rows // BLOCK_ROWS) * -(-columns // BLOCK_COLUMNS) * BLOCK_BYTES


def check_shape(shape: tuple[int, int]) -> tuple[int, int]:
    """The shape as two plain ints.

    Raises:
        ValueError: not two sides, or a side is below 1 or above MAX_SIDE.
    """
    if len(shape) != 2:
        raise ValueError(f"shape {tuple(shape)} has {len(shape)} sides, a matrix has 2")
    rows, columns = int(shape[0]), int(shape[1])
    if not (1 <= rows <= MAX_SIDE and 1 <= columns <= MAX_SIDE):
        raise ValueError(f"shape ({rows}, {columns}): each side must be between 1 and {MAX_SIDE}")
    return rows, columns


def pack(weights: NDArray[np.int8]) -> NDArray[np.uint8]:
    """The packed bytes, 1-D, of weights int8 [N, K] in {-1, 0, 1}.

    Raises:
        ValueError: a weight is not -1, 0 or 1, or the shape is out of range.
    """
    rows, columns = check_shape(weights.shape)
    wrong = (weights < -1) | (weights > 1)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise ValueError(f"weight {weights[row, column]} at [{row}, {column}]: weights must be -1, 0 or 1")
    padded = np.ones((-(-rows // 16) * 16, -(-columns // 64) * 64), np.uint8)
    padded[:rows, :columns] = weights + 1
    n_blocks, k_blocks = padded.shape[0] // 16, padded.shape[1] // 64
    fields = padded.reshape(n_blocks, 16, k_blocks, 4, 4, 4)  # [nb, n, kb, q, j, kk]
    ordered = fields.transpose(0, 2, 3, 1, 5, 4)  # [nb, kb, q, n, kk, j]
    packed = ordered[..., 0] | ordered[..., 1] << 2 | ordered[..., 2] << 4 | ordered[..., 3] << 6
    return np.ascontiguousarray(packed).reshape(-1)


def unpack(packed: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.int8]:
    """The weights int8 [N, K] of packed bytes."""
    rows, columns = check_shape(shape)
    n_blocks, k_blocks = -(-rows // 16), -(-columns // 64)
    blocks = packed.reshape(n_blocks, k_blocks, 4, 16, 4, 1)  # [nb, kb, q, n, kk, 1]
    fields = blocks >> np.array([0, 2, 4, 6], np.uint8) & 3  # [nb, kb, q, n, kk, j]
    padded = fields.transpose(0, 3, 1, 2, 5, 4).reshape(n_blocks * 16, k_blocks * 64)
    return np.ascontiguousarray(padded[:rows, :columns].view(np.int8) - 1)
