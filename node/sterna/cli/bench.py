"""`sterna bench`: how fast this machine is, side by side with what others reach on it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from sterna.cli.bench_tables import show_kernels
from sterna.cli.output import JsonFlag, console, emit, notices, show_table

if TYPE_CHECKING:
    from sterna.bench.model import Figures, ModelReport

app = typer.Typer(
    no_args_is_help=True, help="Measure speed and memory on this machine.", rich_markup_mode=None
)


@app.callback()
def _group() -> None:
    """Measure speed and memory on this machine."""


@app.command("kernels")
def kernels(
    repeats: Annotated[int, typer.Option(min=1, help="Calls whose median counts.")] = 7,
    layers: Annotated[int, typer.Option(min=1, help="Layers of distinct weights for decoding.")] = 30,
    ggml: Annotated[
        Path | None,
        typer.Option(help="Folder of llama.cpp's libraries. [default: llama-cpp-python's, if installed]"),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure the ternary products beside torch and llama.cpp.

    As a share of what this machine allows. One thread, CPU time, systems in turns. For the row of
    llama.cpp: pip install llama-cpp-python.

    Example: sterna bench kernels --repeats 7
    """
    # torch takes seconds to import, and every other command starts without it.
    from sterna.bench.ggml import installed_libraries
    from sterna.bench.kernels import Scope, measure_kernels

    scope = Scope(repeats=repeats, layers=layers)
    folder = ggml or installed_libraries()
    report = measure_kernels(scope, folder, lambda what: notices.print(f"measuring {what}"))
    if as_json:
        emit(asdict(report))
    else:
        show_kernels(report)


@app.command("model")
def model(
    shape: Annotated[str, typer.Option(help="nano, 1b, 2b, 7b or 13b.")] = "2b",
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of a step and of a prompt.")] = 512,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the adapter, on all linears.")] = 8,
    threads: Annotated[int, typer.Option(min=1, help="Threads of every system.")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="Turns whose median counts.")] = 3,
    backward: Annotated[str, typer.Option(help="How gradients are held: int8, int8x2 or fp32.")] = "int8",
    amx: Annotated[bool, typer.Option("--amx/--no-amx", help="Use AMX, ours and torch.")] = True,
    rivals: Annotated[str, typer.Option(help="From bf16, bitnet, fp32; empty for none.")] = "bf16,bitnet",
    rival_gib: Annotated[float, typer.Option(help="A larger rival is measured by a few layers.")] = 12.0,
    whole: Annotated[bool, typer.Option("--whole/--layers", help="Rivals whole, or by a few layers.")] = True,
    keep_freed: Annotated[
        bool | None,
        typer.Option(
            "--keep-freed/--return-freed",
            help="Ours keeps freed memory, or gives it back. [default: as a node here would]",
        ),
    ] = None,
    times: Annotated[bool, typer.Option("--times/--no-times", help="Measure times.")] = True,
    memory: Annotated[bool, typer.Option("--memory/--no-memory", help="Measure memory.")] = True,
    as_json: JsonFlag = False,
) -> None:
    """Measure a whole model beside torch with transformers.

    A LoRA step with peft, a prompt, decoding and memory. Weights are random, in packed form; the base of
    shape 13b takes 3.5 GB of scratch space for a while.

    Example: sterna bench model --shape 2b --tokens 512
    """
    from sterna.bench.model import Choices, measure_model

    choices = Choices(
        shape=shape,
        tokens=tokens,
        rank=rank,
        threads=threads,
        backward=backward,
        repeats=repeats,
        amx=amx,
        rivals=tuple(kind for kind in rivals.split(",") if kind),
        rival_gib=rival_gib,
        whole=whole,
        keep_freed=keep_freed,
        times=times,
        memory=memory,
    )
    report = measure_model(choices, notices.print)
    if as_json:
        emit(asdict(report))
    else:
        _show_model(report)


def _show_model(report: ModelReport) -> None:
    c = report.choices
    table = Table(title=f"{c.shape}: {c.tokens} tokens, rank {c.rank} on all linears, {c.threads} threads")
    for heading in ("system", "step s", "CPU s", "prompt s", "CPU s", "token ms", "CPU ms", "peak GiB"):
        table.add_column(heading, justify="right" if heading != "system" else "left")
    for figures in (report.ours, *report.rivals.values()):
        table.add_row(figures.name, *_cells(figures))
    show_table(table)
    console.print(f"base: {report.base_bytes / 1e9:.2f} GB, opened in {1000 * report.open_seconds:.1f} ms")
    ours = report.ours
    if c.times:
        for job, alone in (("prefill", "products"), ("decode", "products_1")):
            share = ours.cpu_seconds[alone] / ours.cpu_seconds[job]
            console.print(f"{job}: the kernels alone take {share:.0%} of its processor time")
        for figures in report.rivals.values():
            if figures.seconds:
                wall = figures.seconds["step"] / ours.seconds["step"]
                cpu = figures.cpu_seconds["step"] / ours.cpu_seconds["step"]
                console.print(f"step: {wall:.2f} times {figures.name} by the clock, {cpu:.2f} in CPU time")
    if c.memory:
        shared = report.second_process
        console.print(
            f"a second process: {shared['resident_bytes'] / 2**30:.2f} GiB resident, "
            f"{shared['proportional_bytes'] / 2**30:.2f} GiB when shared pages count by half"
        )


def _cells(figures: Figures) -> list[str]:
    cells = []
    for job, unit in (("step", 1), ("prefill", 1), ("decode", 1000)):
        for seconds in (figures.seconds, figures.cpu_seconds):
            cells.append(f"{unit * seconds[job]:.2f}" if job in seconds else "-")
    if figures.failed is not None:
        cells.append("failed: " + figures.failed)
    elif figures.peak_bytes is not None:
        cells.append(f"{figures.peak_bytes / 2**30:.2f}")
    elif figures.least_bytes is not None:
        cells.append(f"weights alone {figures.least_bytes / 2**30:.1f}")
    else:
        cells.append("-")
    return cells
