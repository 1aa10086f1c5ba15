"""Which of the machine's limits a figure is a share of."""

from __future__ import annotations

BFLOAT16 = ", bf16"
"""Behind the name of a variant whose rows and results are in bfloat16."""


def ceiling_of(system: str, limits: dict[str, float]) -> float | None:
    """The limit that holds for a column of the tables; none where it is not known."""
    fp32 = "fp32 512-bit" if "fp32 512-bit" in limits else "fp32 256-bit"
    names = {"torch fp32": fp32, "torch fp32 avx2": "fp32 256-bit", "torch bf16": "amx bf16"}
    return limits.get(names.get(system, system.removesuffix(BFLOAT16)))
