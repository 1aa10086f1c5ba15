"""`sterna simulate --grid`: many trials from one file, and a table of what came of them."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.table import Table

from sterna.cli.output import console, emit, notices, show_table
from sterna.errors import ConfigError
from sterna.simulate.grid import Engine, Options, read_grid, read_results, run_grid, summarise
from sterna.simulate.report import NOT_PROMISED

EXIT_BROKEN = 1
"""An invariant was broken: the protocol, or the simulator, has a bug."""


def simulate_grid(grid: Path, *, results: Path, engine: Engine, as_json: bool) -> None:
    """Run what ``results`` lacks, and show all of it."""
    trials = read_grid(grid)
    if results == grid:
        raise ConfigError(f"--results {results} is the grid itself: name another file")
    had = len(read_results(results))
    if had:
        notices.print(f"{results} holds {had} results already")
    for count, row in enumerate(run_grid(trials, results, engine), start=1):
        report = row["report"]
        mark = "BROKEN" if report["violations"] else "holds"
        notices.print(f"{count}: {mark}, {report['seconds']:.1f} s: {report['command']}")
    rows = read_results(results)
    summary = summarise(trials, rows)
    if as_json:
        emit(summary)
    else:
        _show(summary)
    if any(row["broken"] for row in summary):
        for row in rows:
            for violation in row["report"]["violations"][:1]:
                notices.print(f"{violation}; again: {row['report']['command']}")
        raise typer.Exit(EXIT_BROKEN)


def _show(summary: list[Options]) -> None:
    table = Table()
    names = list(dict.fromkeys(name for row in summary for name in row))
    for name in names:
        table.add_column(name.replace("_", " "))
    for row in summary:
        table.add_row(*(_cell(row.get(name)) for name in names))
    show_table(table)
    if any(row["beyond_tolerance"] for row in summary):
        console.print(
            "beyond tolerance: runs of which a committee had a third of liars or more. Not promised there: "
            f"{'; '.join(NOT_PROMISED)}."
        )


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.4g}"
    return "" if value is None else str(value)
