"""What commands print: text for people, one JSON value for programs, one line for failures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON value instead of text.")]
HomeOption = Annotated[
    Path | None, typer.Option("--home", help="Folder of this node's key and state. [default: ~/.sterna]")
]

MAX_SEED = 2**62
"""A seed and the number of a round are added up, and fit 64 bits."""

console = Console(highlight=False, markup=False, soft_wrap=True)
"""Standard output, for results. Lines are as long as they are: an id or a ticket is copied whole."""

notices = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
"""Standard error, for progress and remarks; results stay clean in a pipe."""

PIPE_COLUMNS = 10_000
"""More than any table takes: what a program reads is neither cut nor folded."""


def show_table(table: Table) -> None:
    """Print ``table`` as wide as the terminal; in a pipe or a file, as wide as what it holds."""
    wide = console if console.is_terminal else Console(width=PIPE_COLUMNS, highlight=False, markup=False)
    wide.print(table, soft_wrap=False)


def emit(value: Any, *, one_line: bool = False) -> None:
    """Print ``value`` as JSON, alone on standard output; ``one_line`` for streams of events."""
    sys.stdout.write(json.dumps(value, indent=None if one_line else 2) + "\n")
    sys.stdout.flush()


def fail(message: str, code: int, *, as_json: bool = False) -> int:
    """Say on standard error, in one line, why a command ends with ``code``, and return that.

    Args:
        as_json: for programs: one JSON object with ``error`` and ``exit_code``.
    """
    line = " ".join(message.split())
    text = json.dumps({"error": line, "exit_code": code}) if as_json else f"error: {line}"
    sys.stderr.write(text + "\n")
    return code
