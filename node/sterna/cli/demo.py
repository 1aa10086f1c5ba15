"""`sterna demo`: a real swarm on this machine in one command."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live

from sterna.app.demo.run import Demo, DemoPlan
from sterna.app.demo.samples import sample_texts
from sterna.app.demo.table import live_table, loss_table
from sterna.cli.output import JsonFlag, console, emit, notices
from sterna.errors import ConfigError
from sterna.wording import counted

MIN_PEERS = 3
MAX_PEERS = 8
REFRESH_PER_SECOND = 4


def demo(
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", help="Your own texts, one per peer (3 to 8). [default: four shipped samples]"),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds to certify.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Local steps a round.")] = 20,
    chaos: Annotated[
        bool, typer.Option("--chaos", help="SIGKILL one peer in round 2 and start it again in round 3.")
    ] = False,
    report: Annotated[Path | None, typer.Option("--report", help="Write the figures as JSON.")] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--folder", help="Keep the peers' homes here. [default: a temporary folder]"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the peers' data order.")] = 0,
    measure: Annotated[
        bool, typer.Option(help="Measure held-out losses and train each peer alone for comparison.")
    ] = True,
    as_json: JsonFlag = False,
) -> None:
    """Watch four real processes train one adapter on this machine.

    They agree on one adapter a round; a fifth process pulls the last one and verifies it.

    Example: sterna demo --chaos
    """
    texts = data or sample_texts()
    if not MIN_PEERS <= len(texts) <= MAX_PEERS:
        raise ConfigError(
            f"{len(texts)} data files; a demo swarm takes {MIN_PEERS} to {MAX_PEERS}, one a peer"
        )
    if chaos and rounds < MIN_PEERS:
        raise ConfigError(
            f"--chaos needs at least 3 rounds, got {rounds}: it kills in round 2, restarts in 3"
        )
    with tempfile.TemporaryDirectory(prefix="sterna-demo-") as temporary:
        plan = DemoPlan(
            folder=folder or Path(temporary),
            data=[path.resolve() for path in texts],
            base="nano",
            rounds=rounds,
            steps=steps,
            seed=seed,
            chaos=chaos,
            measure=measure,
        )
        result = asyncio.run(_watch(Demo(plan), rounds))
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(json.dumps(result, indent=2) + "\n")
    if as_json:
        emit(result)
        return
    print_summary(result, console)


async def _watch(running: Demo, rounds: int) -> dict[str, Any]:
    def table() -> Any:
        return live_table(running.peers, rounds=rounds, note=running.note)

    if not notices.is_terminal:
        return await _watch_lines(running)
    with Live(get_renderable=table, console=notices, refresh_per_second=REFRESH_PER_SECOND):
        return await running.run()


async def _watch_lines(running: Demo) -> dict[str, Any]:
    """A line whenever something new begins, for logs and pipes."""
    task = asyncio.ensure_future(running.run())
    shown = ""
    try:
        while not task.done():
            if running.note != shown:
                shown = running.note
                notices.print(shown)
            await asyncio.wait({task}, timeout=1 / REFRESH_PER_SECOND)
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


def print_summary(result: dict[str, Any], console: Console) -> None:
    """Print a report as a person reads it."""
    for entry in result["rounds"]:
        console.print(
            f"round {entry['round']}: {counted(entry['slate_size'], 'delta')} merged, "
            f"{counted(entry['signatures'], 'signature')}, "
            f"adapter {entry['adapter_digest'][:16]}, {entry['seconds']:.0f} s"
        )
    digests = {peer["adapter_digest"] for peer in result["peers"]}
    same = "all peers hold the same adapter" if len(digests) == 1 else "PEERS DIFFER"
    console.print(f"{same}: {', '.join(sorted(digests))}", soft_wrap=True)
    pulled = result["pulled"]
    console.print(f"a fifth process pulled it: {'verified' if pulled['verified'] else 'NOT VERIFIED'}")
    if "union_loss_after" not in result:
        return
    console.print(loss_table(result))
    sample = result["sample"]
    console.print(f"\nthe base continues {sample['prompt']!r}:\n  {sample['before']}")
    console.print(f"\nwith the swarm's adapter:\n  {sample['after']}")
    console.print(f"\n{result['seconds']['total']:.0f} seconds in all")
