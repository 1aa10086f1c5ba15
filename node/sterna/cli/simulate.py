"""`sterna simulate`: run whole swarms in virtual time, with faults and liars, and see whether they hold."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from sterna.app.engines import engine_of
from sterna.app.simulation import run_simulation
from sterna.cli.grid import EXIT_BROKEN, simulate_grid
from sterna.cli.ignored import refuse_ignored_of_simulate
from sterna.cli.output import JsonFlag, console, emit, notices, show_table
from sterna.errors import ConfigError
from sterna.simulate.attacks import MIXED
from sterna.simulate.faults import Faults
from sterna.simulate.plot import write_plot
from sterna.simulate.report import Report
from sterna.simulate.trial import Entrance, Trial
from sterna_protocol.swarm.defaults import RULE, TRIM_PERCENT

MAX_SEEDS = 1_000_000


def simulate(
    context: typer.Context,
    peers: Annotated[int, typer.Option(help="Nodes in the swarm, 4 to 5000.")] = 30,
    rounds: Annotated[int, typer.Option(help="Rounds that every honest node must close.")] = 10,
    seed: Annotated[int, typer.Option(help="Decides everything; the same seed is the same run.")] = 1,
    seeds: Annotated[int, typer.Option(help="How many runs, with this seed and those after it.")] = 1,
    trainers: Annotated[int | None, typer.Option(help="Nodes that train. [default: all, at most 40]")] = None,
    latency: Annotated[float, typer.Option(help="Mean seconds that a message takes.")] = 0.05,
    loss: Annotated[float, typer.Option(help="Share of messages that are lost.")] = 0.0,
    duplicate: Annotated[float, typer.Option(help="Share of messages that arrive twice.")] = 0.0,
    partition: Annotated[float, typer.Option(help="Share of the time that the network is cut.")] = 0.0,
    crash: Annotated[float, typer.Option(help="How likely a node crashes in one round.")] = 0.0,
    skew: Annotated[float, typer.Option(help="How much too fast or slow a clock may run.")] = 0.0,
    byzantine: Annotated[float, typer.Option(help="Share of the nodes that attack.")] = 0.0,
    attack: Annotated[str, typer.Option(help="What they do, or mixed: each something else.")] = MIXED,
    admission: Annotated[
        Entrance, typer.Option(help="Who takes part: trust everybody, or as in a charter's invite or open.")
    ] = "trust",
    rule: Annotated[str, typer.Option(help="Merge rule of the charter.")] = RULE,
    trim: Annotated[
        int, typer.Option(help="Per cent of a slate that the rule takes for liars.")
    ] = TRIM_PERCENT,
    learning: Annotated[
        Literal["on", "off"], typer.Option(help="Whether peers really train, on the shipped texts.")
    ] = "off",
    base: Annotated[str, typer.Option(help="What they train over.")] = "tiny",
    sharing: Annotated[
        Literal["dirichlet", "source"],
        typer.Option(help="How they share the texts: unevenly, or each from one text."),
    ] = "dirichlet",
    grid: Annotated[
        Path | None,
        typer.Option(help="Run the trials of this TOML file instead; see docs/howto/simulate.md."),
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="Where they are kept, a line of JSON each. [default: FILE.jsonl]")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Trials of a grid at a time.")] = os.cpu_count() or 1,
    engine: Annotated[str, typer.Option(help="Where a grid runs: local, or ray (sterna[ray]).")] = "local",
    ray_address: Annotated[str | None, typer.Option(help="Ray cluster. [default: this machine]")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture of the last run to this file.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Run whole swarms of the real protocol code in virtual time.

    Over a network that fails, with members who lie. Every event is checked: one decision a round, closed
    rounds that never change, no node that says two things, no honest node accused. Exits with 1 if anything
    is broken, and prints the command that runs it again. Faults end two rounds before the end, so that all
    can agree.

    Deltas are synthetic unless --learning is on: peers then train a small model, and attackers may poison it.

    Example: sterna simulate --peers 30 --rounds 10 --seed 1 --loss 0.2 --partition 0.5 --byzantine 0.2

    Example: sterna simulate --peers 20 --learning on --byzantine 0.2 --attack alie
    """
    refuse_ignored_of_simulate(context)
    if grid is not None:
        simulate_grid(
            grid,
            results=grid.with_suffix(".jsonl") if results is None else results,
            engine=engine_of(engine, processes=processes, address=ray_address),
            as_json=as_json,
        )
        return
    if not 1 <= seeds <= MAX_SEEDS:
        raise ConfigError(f"--seeds {seeds} is out of range: give 1 to {MAX_SEEDS}")
    faults = Faults(
        latency=latency, loss=loss, duplicate=duplicate, partition=partition, crash=crash, skew=skew
    )
    reports: list[Report] = []
    for number in range(seed, seed + seeds):
        trial = Trial(
            peers=peers,
            rounds=rounds,
            seed=number,
            trainers=trainers,
            byzantine=byzantine,
            attack=attack,
            rule=rule,
            trim=trim,
            admission=admission,
            base=base if learning == "on" else None,
            sharing=sharing,
            faults=faults,
        )
        report = run_simulation(trial, every_round=plot is not None)
        if seeds > 1 and not as_json:
            mark = "holds" if report.is_good else "BROKEN"
            notices.print(f"seed {number}: {mark}, {report.events} events, {report.seconds:.1f} s")
        reports.append(report)
    if plot is not None:
        write_plot(reports[-1], plot)
    if as_json:
        emit(_as_json(reports))
    else:
        _show(reports)
    if any(not report.is_good for report in reports):
        raise typer.Exit(EXIT_BROKEN)


def _as_json(reports: list[Report]) -> dict[str, object]:
    if len(reports) == 1:
        return reports[0].as_json()
    violations = [
        {"seed": report.seed, "command": report.command, "violations": list(report.violations)}
        for report in reports
        if not report.is_good
    ]
    return {
        "seeds": len(reports),
        "certified_rounds": min(report.certified_rounds for report in reports),
        "forks": sum(report.forks for report in reports),
        "violations": violations,
        "trace_digest": {str(report.seed): report.trace_digest for report in reports},
        "events": sum(report.events for report in reports),
        "seconds": sum(report.seconds for report in reports),
        "messages_per_node": _mean([report.messages_per_node for report in reports]),
        "bytes_per_node": _mean([report.bytes_per_node for report in reports]),
        "beyond_tolerance": sum(report.beyond_tolerance is not None for report in reports),
        "not_promised": max((report.not_promised for report in reports), key=len),
    }


def _show(reports: list[Report]) -> None:
    table = Table()
    table.add_column("seeds" if len(reports) > 1 else "seed")
    table.add_column(f"{reports[0].seed} to {reports[-1].seed}" if len(reports) > 1 else str(reports[0].seed))
    rounds = max(1, _mean([report.certified_rounds for report in reports]))
    voids = sum(report.void_rounds for report in reports)
    certified = min(report.certified_rounds for report in reports)
    table.add_row("certified rounds", f"{certified} at least, {voids} void" if voids else f"{certified}")
    table.add_row("forks", str(sum(report.forks for report in reports)))
    table.add_row("violations", str(sum(len(report.violations) for report in reports)))
    liars = reports[0].byzantine
    if liars:
        table.add_row("Byzantine nodes", f"{liars} of {reports[0].peers}")
        beyond = sum(report.beyond_tolerance is not None for report in reports)
        table.add_row("too many of them in a committee", f"{beyond} of {len(reports)} runs")
    if all(report.learned for report in reports):
        for name in ("loss_before", "loss_clean", "loss_final"):
            losses = [getattr(report.learned, name) for report in reports]
            table.add_row(_LOSSES[name], f"{_mean(losses):.3f}")
    table.add_row("virtual time", f"{_mean([report.virtual_seconds for report in reports]):.0f} s")
    table.add_row("events", f"{sum(report.events for report in reports):,}")
    messages = _mean([report.messages_per_node for report in reports]) / rounds
    size = _mean([report.bytes_per_node for report in reports]) / rounds
    table.add_row("messages per node and round", f"{messages:,.0f}")
    table.add_row("bytes per node and round", f"{size:,.0f}")
    table.add_row("CPU time", f"{sum(report.seconds for report in reports):.1f} s")
    if len(reports) == 1:
        table.add_row("trace digest", reports[0].trace_digest[:16])
    show_table(table)
    first = next((report for report in reports if report.not_promised), None)
    if first is not None:
        console.print(
            f"a committee tolerates fewer than a third of liars; seed {first.seed} had a third or more from "
            f"round {first.beyond_tolerance} on. Not promised there: {'; '.join(first.not_promised)}.",
        )
    for report in reports:
        for violation in report.violations:
            console.print(f"seed {report.seed}: {violation}")
        if not report.is_good:
            console.print(f"again: {report.command}")


_LOSSES = {
    "loss_before": "loss of the base",
    "loss_clean": "loss where nobody attacks, plain mean",
    "loss_final": "loss",
}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
