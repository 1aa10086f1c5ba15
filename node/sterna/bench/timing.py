"""CPU time of calls, so that a busy neighbour costs as little as possible, and medians of calls in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def cpu_seconds(call: Callable[[], object], *, warm_up: bool = True) -> float:
    """CPU seconds that all threads of this process spend in one call, after one that warms up."""
    if warm_up:
        call()
    before = time.process_time_ns()
    call()
    return (time.process_time_ns() - before) / 1e9


def medians_in_turns(systems: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """The median of each system's figures. They take turns, so that a change of clock hits all of them."""
    turns = [{name: run() for name, run in systems.items()} for _ in range(repeats)]
    return {name: statistics.median(turn[name] for turn in turns) for name in systems}
