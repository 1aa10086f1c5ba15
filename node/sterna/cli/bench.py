"""`sterna bench`: how fast this machine is, side by side with what others reach on it."""

from __future__ import annotations

from dataclasses import asdict
from statistics import geometric_mean
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from sterna.cli.output import JsonFlag, console, emit, notices

if TYPE_CHECKING:
    from sterna.bench.kernels import KernelReport

app = typer.Typer(no_args_is_help=True, help="Speed and memory on this machine.", rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Speed and memory on this machine."""


@app.command("kernels")
def kernels(
    repeats: Annotated[int, typer.Option(min=1, help="Calls whose median counts.")] = 7,
    layers: Annotated[int, typer.Option(min=1, help="Layers of distinct weights for decoding.")] = 30,
    as_json: JsonFlag = False,
) -> None:
    """Measure the ternary products beside torch: one thread, CPU time, systems in turns.

    Example: sterna bench kernels --repeats 7
    """
    # torch takes seconds to import, and every other command starts without it.
    from sterna.bench.kernels import measure_kernels

    report = measure_kernels(repeats, layers, lambda what: notices.print(f"measuring {what}"))
    if as_json:
        emit(asdict(report))
    else:
        _show(report)


def _show(report: KernelReport) -> None:
    names = list(report.figures[0].gops)
    table = Table(title="GOPS, one thread; geometric means over the shapes")
    for heading in ("M", "direction", *names):
        table.add_column(heading, justify="right")
    for rows, direction in dict.fromkeys((f.product.rows, f.product.direction) for f in report.figures):
        chosen = [f for f in report.figures if (f.product.rows, f.product.direction) == (rows, direction)]
        means = [geometric_mean([f.gops[name] for f in chosen]) for name in names]
        table.add_row(str(rows), direction, *(f"{mean:.1f}" for mean in means))
    console.print(table)
    read = report.decode["read"]
    console.print(f"decoding, weights cold: reading alone {read:.1f} GB/s")
    for name, speed in report.decode.items():
        if name != "read":
            console.print(f"  {name:<12}{speed:6.1f} GB/s   {speed / read:.0%} of reading")
