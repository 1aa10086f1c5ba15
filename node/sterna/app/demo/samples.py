"""The texts of the demo: four shipped samples of different kinds that the base never saw."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

SAMPLES = ("scripture", "slang", "python", "satire")


def sample_texts() -> list[Path]:
    """The shipped samples in a fixed order."""
    folder = Path(str(resources.files("sterna") / "data" / "samples"))
    return [folder / f"{name}.txt" for name in SAMPLES]
