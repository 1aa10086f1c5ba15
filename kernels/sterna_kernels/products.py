"""Products of float32 rows with a ternary matrix, on the fastest variant this processor runs."""

import numpy as np
from numpy.typing import NDArray

from sterna_kernels import _native
from sterna_kernels._native import address
from sterna_kernels.matrix import TernaryMatrix
from sterna_kernels.reference import Limbs

Thin = tuple[NDArray[np.float32], NDArray[np.float32]]
"""A product of low rank R to add to a result of N columns: left [M, R], right [R, N], float32."""


def matmul(
    x: NDArray[np.float32],
    w: TernaryMatrix,
    *,
    thin: Thin | None = None,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """y = x W^T (+ left right), float32 [M, N], of x float32 [M, K]; rows of x are quantised to int8.

    Args:
        out: where y goes, apart from ``x``; memory that is new to the process costs as much as a third of a
            large product.

    Raises:
        TypeError: ``x``, ``out`` or a part of ``thin`` is not a float32 array.
        ValueError: one of them is not contiguous, not aligned or not of its shape, or ``out`` is read-only or
            shares memory with ``x``.
    """
    check_rows(x, "x", w.shape[1])
    n, k = w.shape
    y = _results(x, n, out)
    packed, scales, group = address(w.packed), scales_address(w), w.group_size or 0
    weights, rows = (packed, n, k, w.scale, scales, group), x.shape[0]
    _native.forward(*weights, address(x), rows, address(y), *_thin_at(thin, rows, n))
    return y


def matmul_t(
    g: NDArray[np.float32],
    w: TernaryMatrix,
    *,
    limbs: Limbs = 1,
    thin: Thin | None = None,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """dx = g W (+ left right), float32 [M, K], of g float32 [M, N]; rows of g become one or two int8 limbs.

    One limb is rounded by chance, two to nearest (``sterna_kernels.reference``); the same rows in the same
    places give the same bits. ``out`` is as in ``matmul``.

    Raises:
        TypeError, ValueError: as ``matmul``, or ``limbs`` is not 1 or 2.
    """
    check_rows(g, "g", w.shape[0])
    if limbs not in (1, 2):
        raise ValueError(f"limbs={limbs}: 1 and 2 exist")
    n, k = w.shape
    dx = _results(g, k, out)
    packed, scales, group = address(w.packed), scales_address(w), w.group_size or 0
    weights, rows = (packed, n, k, w.scale, scales, group), g.shape[0]
    _native.backward(*weights, address(g), rows, limbs, address(dx), *_thin_at(thin, rows, k))
    return dx


def scales_address(w: TernaryMatrix) -> int:
    """Where the scales of the rows or of the groups lie; 0 without any."""
    scales = w.row_scales if w.group_scales is None else w.group_scales
    return 0 if scales is None else address(scales)


def unpack_rows(packed: int, shape: tuple[int, int], first: int, rows: int) -> NDArray[np.int8]:
    """Weights int8 [rows, K] of the rows from ``first`` of the matrix packed at this address."""
    weights = np.empty((rows, shape[1]), np.int8)
    _native.unpack(packed, *shape, first, rows, address(weights))
    return weights


def variants() -> list[str]:
    """The variants this processor runs, fastest first; all return the same bits."""
    return _native.variants()


def variant() -> str:
    """The variant in use."""
    return _native.variant()


def use_variant(name: str) -> None:
    """Use this variant for every product of this process from now on.

    Raises:
        ValueError: this processor does not run it, or there is none of that name.
    """
    if not _native.use_variant(name):
        raise ValueError(f"variant {name!r} does not run here; this processor runs {', '.join(variants())}")


def _thin_at(thin: Thin | None, rows: int, columns: int) -> tuple[int, int, int]:
    """The addresses of both factors, and the rank."""
    if thin is None:
        return 0, 0, 0
    left, right = thin
    check_rows(left, "left", right.shape[0] if right.ndim else 0)
    check_rows(right, "right", columns)
    if left.shape[0] != rows:
        raise ValueError(f"left has {left.shape[0]} rows, the result has {rows}")
    return address(left), address(right), left.shape[1]


def _results(x: NDArray[np.float32], columns: int, out: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """``out`` or new float32 [rows of x, columns]; many start on a cache line, for stores past the caches."""
    rows = x.shape[0]
    if out is not None:
        check_rows(out, "out", columns)
        if out.shape[0] != rows:
            raise ValueError(f"out has {out.shape[0]} rows, the result has {rows}")
        if not out.flags.writeable:
            raise ValueError("out is read-only")
        if np.may_share_memory(x, out):
            raise ValueError("out shares memory with what is multiplied")
        return out
    if rows <= 16:
        return np.empty((rows, columns), np.float32)
    room = np.empty(rows * columns + 15, np.float32)
    start = -address(room) // 4 % 16
    return room[start : start + rows * columns].reshape(rows, columns)


def check_rows(x: NDArray[np.float32], name: str, width: int) -> None:
    """Refuse what the kernels cannot read as float32 rows of this width.

    Raises:
        TypeError: not a float32 array.
        ValueError: not [rows, width], not contiguous or not aligned.
    """
    if not isinstance(x, np.ndarray) or x.dtype != np.float32:
        kind = f"an array of {x.dtype}" if isinstance(x, np.ndarray) else type(x).__name__
        raise TypeError(f"{name} must be a float32 array, not {kind}")
    if x.ndim != 2 or x.shape[1] != width:
        raise ValueError(f"{name} has shape {x.shape}, the matrix needs (rows, {width})")
    if not x.flags.c_contiguous:
        raise ValueError(f"{name} must be C-contiguous; its strides are {x.strides}")
    if not x.flags.aligned:
        raise ValueError(f"{name} starts at address {x.ctypes.data:#x}, which is not aligned to a float32")
