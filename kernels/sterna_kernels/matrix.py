"""A ternary matrix with its scales, held in the packed layout and never unpacked as a whole."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sterna_kernels.layout import check_shape, pack, packed_nbytes, unpack


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class TernaryMatrix:
    """W [N, K] = scale * row_scales[:, None] * codes, codes in {-1, 0, 1}, two bits each.

    Make one with ``from_codes`` or ``from_packed``, which check their arguments.

    Attributes:
        packed: the bytes, uint8, 1-D, read-only; see sterna_kernels.layout.
        shape: (N, K), out x in.
        scale: a finite float32 value.
        row_scales: float32 [N], finite, or None when one scale is all there is.
    """

    packed: NDArray[np.uint8]
    shape: tuple[int, int]
    scale: float
    row_scales: NDArray[np.float32] | None = None

    @classmethod
    def from_codes(
        cls, codes: NDArray[np.int8], scale: float, *, row_scales: NDArray[np.float32] | None = None
    ) -> "TernaryMatrix":
        """Pack codes int8 [N, K].

        Raises:
            TypeError: ``codes`` is not an int8 array, ``row_scales`` not a float32 array.
            ValueError: a code is not -1, 0 or 1, a side is out of range, or a scale is not finite.
        """
        if not isinstance(codes, np.ndarray) or codes.dtype != np.int8:
            raise TypeError(f"codes must be an int8 array, not {_describe(codes)}")
        return cls.from_packed(pack(codes), (codes.shape[0], codes.shape[1]), scale, row_scales=row_scales)

    @classmethod
    def from_packed(
        cls,
        packed: NDArray[np.uint8],
        shape: tuple[int, int],
        scale: float,
        *,
        row_scales: NDArray[np.float32] | None = None,
    ) -> "TernaryMatrix":
        """Take packed bytes as they are: the array is kept, not copied, so that a mapped file stays mapped.

        Raises:
            TypeError: ``packed`` is not a uint8 array, ``row_scales`` not a float32 array.
            ValueError: it is not 1-D, not contiguous or has another size than the shape needs; a side is
                out of range; ``row_scales`` is not [N]; a scale is not finite in float32.
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
        if row_scales is not None:
            row_scales = _check_row_scales(row_scales, shape[0])
        return cls(packed=kept, shape=shape, scale=_finite(scale), row_scales=row_scales)

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


def _check_row_scales(scales: NDArray[np.float32], rows: int) -> NDArray[np.float32]:
    if not isinstance(scales, np.ndarray) or scales.dtype != np.float32:
        raise TypeError(f"row_scales must be a float32 array, not {_describe(scales)}")
    if scales.shape != (rows,):
        raise ValueError(f"row_scales has shape {scales.shape}, the matrix needs ({rows},)")
    wrong = ~np.isfinite(scales)
    if wrong.any():
        raise ValueError(f"row_scales[{wrong.argmax()}] is {scales[wrong.argmax()]}, not a finite number")
    kept = scales.copy()
    kept.flags.writeable = False
    return kept


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    return type(value).__name__
