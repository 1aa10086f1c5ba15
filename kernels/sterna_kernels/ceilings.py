"""What one core of this machine can do at most: the measure of every speed that is reported."""

import numpy as np
from numpy.typing import NDArray

from sterna_kernels import _native


def ceilings() -> list[str]:
    """The loops of one instruction that this processor runs.

    A variant's name means the instruction that does the variant's work; ``fp32 256-bit``, ``fp32 512-bit``
    and ``amx bf16`` are what dense products may use.
    """
    return _native.ceilings()


def run_ceiling(name: str, rounds: int) -> int:
    """Run the loop on this thread; return its multiplications and additions.

    Raises:
        ValueError: this processor does not run it, or ``rounds`` is below 1.
    """
    return _native.run_ceiling(name, rounds)


def read_all(memory: NDArray[np.uint8], streams: int) -> int:
    """Read every byte once, on 1 to 16 stretches side by side; what is returned means nothing."""
    return _native.read_memory(_native.address(memory), memory.nbytes, streams)
