"""`sterna join` and `sterna resume`: run a node in the foreground."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from sterna.app.node import NodeOptions, join_swarm, resume_swarm
from sterna.app.running import Display
from sterna.cli.output import MAX_SEED, HomeOption, JsonFlag, console, emit
from sterna.swarm.gate import DEFAULT_TOLERANCE
from sterna.wording import counted

DataOption = Annotated[
    Path,
    typer.Option(
        "--data",
        help="Your text: .txt, or .jsonl with `text`, `prompt` and `completion`, or `messages`. "
        "It never leaves this machine.",
    ),
]
ListenOption = Annotated[
    list[str] | None,
    typer.Option(
        "--listen",
        help="Where to listen, repeatable: /ip4/0.0.0.0/tcp/4001 is port 4001. [default: a free port]",
    ),
]
UntilOption = Annotated[
    int | None, typer.Option(min=1, help="Train up to this round, then only vote and serve.")
]
ThreadsOption = Annotated[int, typer.Option(min=1, max=256, help="CPU threads for training.")]
SeedOption = Annotated[
    int | None, typer.Option(min=0, max=MAX_SEED, help="Seed of data order, for repeatable runs.")
]
ToleranceOption = Annotated[
    float,
    typer.Option(
        min=0,
        help="Nats per token by which a certified adapter may be worse on your hold-out text than the one "
        "served before; else it is followed but not served.",
    ),
]
TicketArgument = Annotated[str, typer.Argument(metavar="TICKET", help="The ticket a member gave you.")]


def join(
    ticket: TicketArgument,
    data: DataOption,
    listen: ListenOption = None,
    until_round: UntilOption = None,
    threads: ThreadsOption = 1,
    seed: SeedOption = None,
    tolerance: ToleranceOption = DEFAULT_TOLERANCE,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Join a swarm and train with the others.

    Ctrl-C stops the node; `sterna resume` goes on.

    Example: sterna join sterna1... --data notes.jsonl
    """
    options = NodeOptions(
        home=home,
        data=data,
        listen=tuple(listen or ()),
        until_round=until_round,
        threads=threads,
        seed=seed,
        tolerance=tolerance,
    )
    run_with_display(lambda display: join_swarm(ticket, options, display), as_json)


def resume(
    data: Annotated[
        Path | None, typer.Option("--data", help="Another text than last time. [default: the same]")
    ] = None,
    listen: ListenOption = None,
    until_round: UntilOption = None,
    threads: ThreadsOption = 1,
    seed: SeedOption = None,
    tolerance: ToleranceOption = DEFAULT_TOLERANCE,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Go on in the swarm this home joined last, where it stopped.

    Example: sterna resume
    """
    options = NodeOptions(
        home=home,
        data=data,
        listen=tuple(listen or ()),
        until_round=until_round,
        threads=threads,
        seed=seed,
        tolerance=tolerance,
    )
    run_with_display(lambda display: resume_swarm(options, display), as_json)


def run_with_display(run: Callable[[Display], Coroutine[Any, Any, None]], as_json: bool) -> None:
    """Run a node until Ctrl-C or SIGTERM, printing what happens: text, or one JSON object a line."""
    asyncio.run(_until_signal(run(_JsonLines() if as_json else Lines())))


async def _until_signal(node: Coroutine[Any, Any, None]) -> None:
    task = asyncio.ensure_future(node)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        if not task.cancelled():
            raise


def waiting_line(peers: int, min_deltas: int) -> str:
    """Why no round ends, for a person."""
    more = counted(peers, "more peer")
    return f"for {more}: a round is merged from the deltas of {min_deltas} or more"


class Lines:
    """One line an event, for a person."""

    def event(self, name: str, **fields: Any) -> None:
        if name == "ticket" and fields["invites"]:
            console.print("Others join with:\n")
            console.print(f"  sterna join {fields['ticket']} --data FILE\n")
            return
        if name == "ticket":
            console.print("Others, without joining, pull and verify the adapter with:\n")
            console.print(f"  sterna pull {fields['ticket']} --format peft -o adapter/\n")
            return
        if name == "waiting":
            console.print(f"{name:<18} {waiting_line(fields['peers'], fields['min_deltas'])}")
            return
        if name == "trouble":
            console.print(f"{name:<18} {fields['why']}")
            return
        text = "  ".join(f"{key} {value}" for key, value in fields.items())
        console.print(f"{name:<18} {text}")


class _JsonLines:
    """One JSON object an event, for a program."""

    def event(self, name: str, **fields: Any) -> None:
        emit({"event": name, **fields}, one_line=True)
