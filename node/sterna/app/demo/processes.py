"""The demo's peers: real `sterna` processes with homes of their own, started, watched, killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sterna.app.status import read_status
from sterna.errors import NodeError

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
STOP_SECONDS = 10.0


@dataclass(slots=True)
class DemoPeer:
    """One peer of the demo and the process that runs it now."""

    index: int
    home: Path
    data: Path
    process: asyncio.subprocess.Process | None = field(default=None, repr=False)

    @property
    def label(self) -> str:
        return f"peer {self.index + 1}"

    @property
    def log(self) -> Path:
        return self.home / "demo.log"

    async def start(self, *arguments: str) -> None:
        """Run `sterna ARGUMENTS` with this peer's home; its output goes to ``log``."""
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *sterna_command(*arguments, "--home", str(self.home)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def status(self) -> dict[str, Any]:
        """What the process last wrote about itself; empty before its first word."""
        return read_status(self.home) or {}

    def require_alive(self) -> None:
        """Return if the process runs.

        Raises:
            NodeError: it ended; the message carries its last line.
        """
        if self.process is not None and self.process.returncode is not None:
            lines = self.log.read_text(errors="replace").strip().splitlines() or ["no output"]
            raise NodeError(
                f"{self.label} ended with code {self.process.returncode}: {lines[-1].removeprefix('error: ')}"
            )

    async def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        self.process = None

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL if it does not listen."""
        if self.process is None or self.process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self.process.wait(), STOP_SECONDS)
        except TimeoutError:
            await self.kill()


def sterna_command(*arguments: str) -> list[str]:
    """The command line that runs this very installation of Sterna."""
    return [sys.executable, "-m", "sterna", *arguments]


async def run_json(*arguments: str) -> dict[str, Any]:
    """Run `sterna ARGUMENTS --json` in a process of its own and return what it printed.

    Raises:
        NodeError: it failed; the message says why.
    """
    process = await asyncio.create_subprocess_exec(
        *sterna_command(*arguments, "--json"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        raise
    if process.returncode != 0:
        raise NodeError(f"`sterna {arguments[0]}` ended with code {process.returncode}: {_why(err)}")
    value: dict[str, Any] = json.loads(out)
    return value


def _why(err: bytes) -> str:
    """What a command with --json said last on standard error: its error, unless it was killed."""
    lines = err.decode(errors="replace").strip().splitlines() or ["no output"]
    try:
        return str(json.loads(lines[-1])["error"])
    except (ValueError, TypeError, KeyError):
        return lines[-1]
