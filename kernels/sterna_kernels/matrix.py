"""A ternary matrix with its scales, held in the packed layout and never unpacked as a whole."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sterna_kernels.layout import BLOCK_COLUMNS, MAX_SIDE, check_shape, pack, packed_nbytes, unpack


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class TernaryMatrix:
    """W [N, K] = scale * codes, codes in {-1, 0, 1}, two bits each; rows or groups may have scales beside it:

        W[n, k] = scale * row_scales[n] * codes[n, k]
        W[n, k] = scale * group_scales[n, k // group_size] * codes[n, k]

    Make one with ``from_codes`` or ``from_packed``, which check their arguments.

    Attributes:
        packed: the bytes, uint8, 1-D, read-only; see sterna_kernels.layout.
        shape: (N, K), out x in.
        scale: a finite float32 value.
        row_scales: float32 [N], finite, or None; the array itself where it is read-only, else a copy.
        group_scales: float32 [N, ceil(K / group_size)], likewise; not with ``row_scales``.
        group_size: columns that share a scale of their row, a multiple of 64; None without ``group_scales``.
    """

    packed: NDArray[np.uint8]
    shape: tuple[int, int]
    scale: float
    row_scales: NDArray[np.float32] | None = None
    group_scales: NDArray[np.float32] | None = None
    group_size: int | None = None

    @classmethod
    def from_codes(
        cls,
        codes: NDArray[np.int8],
        scale: float,
        *,
        row_scales: NDArray[np.float32] | None = None,
        group_scales: NDArray[np.float32] | None = None,
        group_size: int | None = None,
    ) -> "TernaryMatrix":
        """Pack codes int8 [N, K].

        Raises:
            TypeError: ``codes`` is not an int8 array; scales as for ``from_packed``.
            ValueError: a code is not -1, 0 or 1, a side is out of range; scales as for ``from_packed``.
        """
        if not isinstance(codes, np.ndarray) or codes.dtype != np.int8:
            raise TypeError(f"codes must be an int8 array, not {_describe(codes)}")
        return cls.from_packed(
            pack(codes),
            (codes.shape[0], codes.shape[1]),
            scale,
            row_scales=row_scales,
            group_scales=group_scales,
            group_size=group_size,
        )

    @classmethod
    def from_packed(
        cls,
        packed: NDArray[np.uint8],
        shape: tuple[int, int],
        scale: float,
        *,
        row_scales: NDArray[np.float32] | None = None,
        group_scales: NDArray[np.float32] | None = None,
        group_size: int | None = None,
    ) -> "TernaryMatrix":
        """Take packed bytes as they are: the array is kept, not copied, so that a mapped file stays mapped.

        Raises:
            TypeError: ``packed`` is not a uint8 array, or scales are not a float32 array.
            ValueError: it is not 1-D, not contiguous or has another size than the shape needs; a side is
                out of range; ``row_scales`` is not [N] or ``group_scales`` not [N, ceil(K / group_size)];
                both are given, or one of ``group_scales`` and ``group_size`` without the other;
                ``group_size`` is not a multiple of 64; a scale is not finite in float32.
        """
        if not isinstance(packed, np.ndarray) or packed.dtype != np.uint8:
            raise TypeError(f"packed must be a uint8 array, not {_describe(packed)}")
        shape = check_shape(shape)
        if packed.ndim != 1 or not packed.flags.c_contiguous:
            raise ValueError(f"packed must be one contiguous row of bytes, not shape {packed.shape}")
        if packed.size != packed_nbytes(shape):
            raise ValueError(f"{packed.size} packed bytes, shape {shape} needs {packed_nbytes(shape)}")
        kept = packed.view()
        kept.flags.writeable = False
        if row_scales is not None and group_scales is not None:
            raise ValueError(
                "row_scales beside group_scales: multiply each row of group_scales by its row's scale"
            )
        if row_scales is not None:
            row_scales = _check_scales("row_scales", row_scales, (shape[0],))
        if (group_scales is None) != (group_size is None):
            raise ValueError("group_scales and group_size go together: give both or neither")
        if group_scales is not None and group_size is not None:
            expected = (shape[0], check_groups(shape, group_size))
            group_scales = _check_scales("group_scales", group_scales, expected)
        return cls(kept, shape, _finite(scale), row_scales, group_scales, group_size)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed form."""
        return self.packed.nbytes

    def codes(self) -> NDArray[np.int8]:
        """The weights without the scale, int8 [N, K], a fresh array."""
        return unpack(self.packed, self.shape)


def _finite(scale: float) -> float:
    with np.errstate(over="ignore"):
        single = float(np.float32(scale))
    if not math.isfinite(single):
        raise ValueError(f"scale {scale} is not finite in float32")
    return single


def check_groups(shape: tuple[int, int], size: int) -> int:
    """How many groups of ``size`` columns a row of this shape has.

    Raises:
        ValueError: ``size`` is not a multiple of BLOCK_COLUMNS up to MAX_SIDE.
    """
    if type(size) is not int or not BLOCK_COLUMNS <= size <= MAX_SIDE or size % BLOCK_COLUMNS:
        raise ValueError(f"group_size={size!r}: a multiple of {BLOCK_COLUMNS} up to {MAX_SIDE} is needed")
    return -(-shape[1] // size)


def _check_scales(name: str, scales: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    if not isinstance(scales, np.ndarray) or scales.dtype != np.float32:
        raise TypeError(f"{name} must be a float32 array, not {_describe(scales)}")
    if scales.shape != shape:
        raise ValueError(f"{name} has shape {scales.shape}, the matrix needs {shape}")
    wrong = np.argwhere(~np.isfinite(scales))
    if len(wrong):
        place = tuple(wrong[0].tolist())
        where = ", ".join(map(str, place))
        raise ValueError(f"{name}[{where}] is {scales[place]}, not a finite number")
    # What nobody can write to is kept, so that a mapped file stays mapped.
    if not scales.flags.writeable and scales.flags.c_contiguous and scales.flags.aligned:
        return scales
    kept = scales.copy(order="C")
    kept.flags.writeable = False
    return kept


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    return type(value).__name__
