"""What a running node says of itself: one small file in its home, replaced as a whole."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

STATUS_FILE = "status.json"

MIN_INTERVAL_SECONDS = 0.5
"""Between two writes: a table that a person watches needs no more."""


def write_status(home: Path, status: dict[str, Any]) -> None:
    """Replace the status file; a reader sees the old or the new one, never half of one."""
    temporary = home / f".{STATUS_FILE}.tmp"
    temporary.write_text(json.dumps(status))
    temporary.replace(home / STATUS_FILE)


def read_status(home: Path) -> dict[str, Any] | None:
    """The last status a node of this home wrote, with ``running`` added; ``None`` if there is none."""
    try:
        status: dict[str, Any] = json.loads((home / STATUS_FILE).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    status["running"] = _is_alive(int(status.get("pid", 0)))
    return status


def _is_alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class StatusWriter:
    """Writes the status when it changed, at most twice a second, and once more at the end."""

    def __init__(self, home: Path, collect: Callable[[], dict[str, Any]]) -> None:
        self._home = home
        self._collect = collect
        self._changed = asyncio.Event()

    def mark_changed(self) -> None:
        self._changed.set()

    async def keep_written(self) -> None:
        """Write until cancelled."""
        try:
            while True:
                await self._changed.wait()
                self._changed.clear()
                self._write()
                await asyncio.sleep(MIN_INTERVAL_SECONDS)
        finally:
            self._write()

    def _write(self) -> None:
        try:
            write_status(self._home, {"pid": os.getpid(), **self._collect()})
        except OSError as full:
            # The status is a convenience; what matters goes through the store, which reports this itself.
            logger.info("status.unwritten", extra={"why": str(full)})
