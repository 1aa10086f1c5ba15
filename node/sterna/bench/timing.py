"""CPU time of calls, so that a busy neighbour costs as little as possible, and medians of calls in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def cpu_seconds(call: Callable[[], object], *, calls: int = 1) -> float:
    """CPU seconds of all threads in one call, the mean of several, after one that warms up."""
    call()
    before = time.process_time_ns()
    for _ in range(calls):
        call()
    return (time.process_time_ns() - before) / 1e9 / calls


def wall_seconds(call: Callable[[], object]) -> float:
    """Seconds on the clock of one call, after one to warm up."""
    call()
    before = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - before) / 1e9


def medians_in_turns(systems: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """The median of each system's figures. They take turns, so that a change of clock hits all of them."""
    turns = [{name: run() for name, run in systems.items()} for _ in range(repeats)]
    return {name: statistics.median(turn[name] for turn in turns) for name in systems}
