"""The machine's own limits, one core: what its instructions and its memory allow, whatever the program."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from sterna.bench.timing import cpu_seconds, medians_in_turns
from sterna_kernels.ceilings import ceilings, read_all, run_ceiling

_LOOP_OPERATIONS = 20_000_000_000
"""Of one timing of a loop; 3 to 200 ms."""

STREAMS = (1, 2, 4)
"""Stretches of memory read side by side; processors differ in which is faster."""


def instruction_limits(repeats: int) -> dict[str, float]:
    """GOPS of a loop of nothing but the one instruction, by the names of ``sterna_kernels.ceilings``."""
    rounds = {
        name: max(1, _LOOP_OPERATIONS // (run_ceiling(name, 1) * _slowness(name))) for name in ceilings()
    }
    systems = {name: partial(cpu_seconds, partial(run_ceiling, name, n)) for name, n in rounds.items()}
    seconds = medians_in_turns(systems, repeats)
    return {name: run_ceiling(name, 1) * rounds[name] / s / 1e9 for name, s in seconds.items()}


def read_seconds(memory: NDArray[np.uint8], streams: int) -> float:
    """CPU seconds of reading every byte of ``memory`` once."""
    return cpu_seconds(lambda: read_all(memory, streams))


def _slowness(name: str) -> int:
    """Loops of floats run a tenth as many operations, to take about as long."""
    return 10 if name.startswith("fp32") else 1
