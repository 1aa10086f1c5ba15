"""Measured processes: each system runs in one of its own, so that peaks of memory do not mix.

parent -> child   one line of JSON: [what, arguments]
child -> parent   {"ready": {...}} once, then for each line one of JSON: {"done": {...}} or {"failed": text}
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sterna.errors import ConfigError

Answer = dict[str, Any]


class Measured:
    """The parent's end of a measured process. Close it after use: it is a context manager."""

    def __init__(self, module: str, *arguments: str, environment: Mapping[str, str]) -> None:
        """
        Raises:
            ConfigError: the process does not start; its last line of standard error says why.
        """
        self.name = module
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self.ready: Answer = self._read("ready")

    def ask(self, what: str, **arguments: Any) -> Answer:
        """What the process answers.

        Raises:
            ConfigError: it failed or ended.
        """
        assert self._process.stdin is not None  # for mypy: opened as a pipe
        try:
            self._process.stdin.write(json.dumps([what, arguments]) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None
        return self._read("done")

    def close(self) -> None:
        """End the process and wait for it."""
        self._process.communicate()

    def __enter__(self) -> Measured:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, key: str) -> Answer:
        assert self._process.stdout is not None  # for mypy, as above
        line = self._process.stdout.readline()
        if not line:
            raise self._died()
        answer: Answer = json.loads(line)
        if key not in answer:
            raise ConfigError(f"{self.name}: {answer['failed']}")
        found: Answer = answer[key]
        return found

    def _died(self) -> ConfigError:
        _, errors = self._process.communicate()
        last = (errors.strip().splitlines() or ["nothing on standard error"])[-1]
        return ConfigError(f"{self.name} ended with {self._process.returncode}: {last}")


def serve(ready: Answer, jobs: Mapping[str, Callable[..., Answer]]) -> None:
    """The child's end: answer until the parent closes the pipe. Nothing else may print on standard output."""
    _tell({"ready": ready})
    for line in sys.stdin:
        what, arguments = json.loads(line)
        try:
            _tell({"done": jobs[what](**arguments)})
        except (RuntimeError, ValueError, TypeError, NotImplementedError, MemoryError) as error:
            _tell({"failed": f"{type(error).__name__}: {error}".splitlines()[0][:500]})


def peak_bytes() -> int:
    """The most memory this process has had resident since its start, mapped files included."""
    return _status_bytes("VmHWM")


def resident_bytes() -> int:
    """What this process has resident now."""
    return _status_bytes("VmRSS")


def shared_bytes() -> Answer:
    """Resident and proportional size: a page that n processes share counts 1/n in the second."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines}
    return {"resident_bytes": sizes["Rss"], "proportional_bytes": sizes["Pss"]}


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return 1024 * int(line.split()[1])
    raise ConfigError(f"/proc/self/status has no {key}: memory is measured on Linux only")


def _tell(what: Answer) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()
