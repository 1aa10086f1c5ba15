"""Products of float32 rows with an int8 matrix that has a scale for each row: the output head."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sterna_kernels import _native
from sterna_kernels._native import address
from sterna_kernels.products import check_rows

MAX_WIDTH = 1 << 16
"""Longest row of an int8 matrix: 2^16 products of a limb and a code + 128 stay inside int32."""


@dataclass(frozen=True, slots=True, eq=False)
class Int8Matrix:
    """W [N, K] = scales[:, None] * codes, on the memory of its arrays, which may be a mapped file.

    Attributes:
        codes: int8 [N, K].
        scales: float32 [N].

    Raises:
        TypeError: an array has another dtype.
        ValueError: a shape does not fit, a row is longer than MAX_WIDTH, or an array is not contiguous.
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.codes.dtype != np.int8 or self.scales.dtype != np.float32:
            raise TypeError(
                f"codes must be int8 and scales float32, not {self.codes.dtype} and {self.scales.dtype}"
            )
        if self.codes.ndim != 2 or not self.codes.size or self.codes.shape[1] > MAX_WIDTH:
            raise ValueError(
                f"codes have shape {self.codes.shape}, needed is (N, K) with 1 <= K <= {MAX_WIDTH}"
            )
        if self.scales.shape != self.codes.shape[:1]:
            raise ValueError(f"scales have shape {self.scales.shape}, the codes need {self.codes.shape[:1]}")
        if not (
            self.codes.flags.c_contiguous and self.scales.flags.c_contiguous and self.scales.flags.aligned
        ):
            raise ValueError("codes and scales must be contiguous, and scales aligned to a float32")

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.codes.shape[0], self.codes.shape[1]


def int8_matmul(x: NDArray[np.float32], w: Int8Matrix) -> NDArray[np.float32]:
    """y = x W^T, float32 [M, N], of x float32 [M, K]; rows of x are quantised to two int8 limbs, 15 bits.

    Raises:
        TypeError: ``x`` is not a float32 array.
        ValueError: ``x`` is not contiguous, not aligned or not [M, K].
    """
    n, k = w.shape
    check_rows(x, "x", k)
    y = np.empty((x.shape[0], n), np.float32)
    _native.int8_forward(address(w.codes), address(w.scales), n, k, address(x), x.shape[0], address(y))
    return y


def int8_matmul_t(g: NDArray[np.float32], w: Int8Matrix) -> NDArray[np.float32]:
    """dx = g W, float32 [M, K], of g float32 [M, N]; see ``reference.int8_matmul_t`` for what is rounded.

    Raises:
        TypeError: ``g`` is not a float32 array.
        ValueError: ``g`` is not contiguous, not aligned or not [M, N].
    """
    n, k = w.shape
    check_rows(g, "g", n)
    dx = np.empty((g.shape[0], k), np.float32)
    _native.int8_backward(address(w.codes), address(w.scales), n, k, address(g), g.shape[0], address(dx))
    return dx
