"""The pages of a mapped file that a process has looked at, and how it gives them back."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray


def release(part: NDArray[Any]) -> None:
    """Take the pages under a part of a mapped file out of this process.

    They stay in the page cache, which the system shrinks when it wants memory, and come back when somebody
    looks at them: from there, or from the disk.

    Raises:
        TypeError: ``part`` lies in other memory, whose contents would be lost.
    """
    owner: Any = part
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if not isinstance(owner, mmap.mmap):
        raise TypeError("the array is no part of a mapped file")
    start = part.ctypes.data - np.frombuffer(owner, np.uint8).ctypes.data
    first = start - start % mmap.PAGESIZE
    owner.madvise(mmap.MADV_DONTNEED, first, start + part.nbytes - first)
