"""What becomes of the memory that a training process frees between its steps: kept, or given back."""

from __future__ import annotations

from pathlib import Path

KEPT_MEMORY_BYTES = 1 << 30
"""Freed memory that the training process keeps for its next step."""

LARGE_BASE_BYTES = 1 << 28
"""From here on a step's own memory counts beside that of a process that has loaded torch."""

ROOMY_FACTOR = 8
"""Where so many times a base is free, speed matters more than memory: a step of 512 tokens and what it keeps
beyond its needs take about four times the base."""

RETURNED_BYTES = 1 << 18
"""With a large base, tensors of this size go back to the system when they are freed."""

KEPT, RETURNED = "kept", "returned"
"""What becomes of freed memory and of the pages of the base between their uses."""


def available_bytes() -> int:
    """Memory that a process could take without others being swapped out; 0 if the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(found[0]) if found else 0


def keeps_memory(base_bytes: int, free_bytes: int) -> bool:
    """Whether a training process holds on to what it will need again: with a large base, where there is room.

    Args:
        free_bytes: memory that this machine has to spare.
    """
    return base_bytes < LARGE_BASE_BYTES or free_bytes >= ROOMY_FACTOR * base_bytes


def malloc_environment(base_bytes: int, free_bytes: int) -> dict[str, str]:
    """How the C library should hold a training process's memory.

    Each step frees and takes the same memory, and handing it to the system in between costs page faults: a
    tenth of a step of a small base, up to half of one of a large base. Kept, it is twice what such a step
    needs, because aligned blocks of one size are not found again between blocks that live longer: so a large
    base keeps it only where memory is plentiful. The child gives back what it kept when a job ends.

    Args:
        free_bytes: memory that this machine has to spare.
    """
    returned = KEPT_MEMORY_BYTES if keeps_memory(base_bytes, free_bytes) else RETURNED_BYTES
    return {"MALLOC_TRIM_THRESHOLD_": str(KEPT_MEMORY_BYTES), "MALLOC_MMAP_THRESHOLD_": str(returned)}
