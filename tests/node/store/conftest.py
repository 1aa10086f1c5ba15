"""A folder for tests that write and sync much."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is some: what a killed process wrote stays there as it does on a disk."""
    memory = Path("/dev/shm")
    if memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 1 << 30:
        with tempfile.TemporaryDirectory(prefix="sterna-crash-", dir=memory) as path:
            yield Path(path)
    else:
        yield tmp_path
