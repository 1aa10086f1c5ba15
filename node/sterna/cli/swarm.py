"""`sterna swarm create`: found a swarm and run its first node."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sterna.app.founding import FoundingChoices
from sterna.app.node import NodeOptions, create_swarm
from sterna.app.reform import reform as reform_swarm
from sterna.cli.join import (
    DataOption,
    ListenOption,
    SeedOption,
    ThreadsOption,
    ToleranceOption,
    UntilOption,
    run_with_display,
)
from sterna.cli.output import HomeOption, JsonFlag, console, emit
from sterna.swarm.gate import DEFAULT_TOLERANCE
from sterna_protocol.swarm.defaults import (
    ADMISSION,
    MIN_DELTAS,
    QUORUM,
    RULE,
    STEPS,
    TRAIN_MILLISECONDS,
    AdmissionMode,
    Quorum,
    Rule,
)

app = typer.Typer(no_args_is_help=True, help="Found a swarm, or reform one.", rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Found a swarm, or reform one."""


@app.command("create")
def create(
    data: DataOption,
    base: Annotated[str, typer.Option(help="Base to train over; see `sterna base list`.")] = "nano",
    name: Annotated[str, typer.Option(help="What members will see the swarm called.")] = "swarm",
    steps: Annotated[int | None, typer.Option(min=1, help=f"Local steps a round. [default: {STEPS}]")] = None,
    min_deltas: Annotated[
        int | None, typer.Option(min=1, help=f"Fewest deltas that make a merge. [default: {MIN_DELTAS}]")
    ] = None,
    rule: Annotated[
        Rule | None, typer.Option(help=f"How a slate is merged; see docs/spec/merge.md. [default: {RULE}]")
    ] = None,
    quorum: Annotated[
        Quorum | None,
        typer.Option(
            help=f"byzantine (more than 2/3) or majority (small circles of friends). [default: {QUORUM}]"
        ),
    ] = None,
    admission: Annotated[
        AdmissionMode | None,
        typer.Option(
            help="invite: who was invited. psk: nobody else can even connect. open: anybody. "
            f"[default: {ADMISSION}]"
        ),
    ] = None,
    train_seconds: Annotated[
        float | None,
        typer.Option(
            min=1,
            max=604_800,
            help=f"Longest time a round waits for deltas. [default: {TRAIN_MILLISECONDS // 1000}]",
        ),
    ] = None,
    listen: ListenOption = None,
    until_round: UntilOption = None,
    threads: ThreadsOption = 1,
    seed: SeedOption = None,
    tolerance: ToleranceOption = DEFAULT_TOLERANCE,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Found a swarm over a base, print its ticket, and train in it.

    Whoever has the ticket can join: it holds an invite for 16 peers; `sterna invite` makes others. Ctrl-C
    stops the node; `sterna resume` goes on.

    Example: sterna swarm create --base nano --data notes.jsonl
    """
    choices = FoundingChoices(
        name=name,
        steps=steps,
        min_deltas=min_deltas,
        rule=rule,
        quorum=quorum,
        admission=admission,
        train_milliseconds=None if train_seconds is None else round(1000 * train_seconds),
    )
    options = NodeOptions(
        home=home,
        data=Path(data),
        listen=tuple(listen or ()),
        until_round=until_round,
        threads=threads,
        seed=seed,
        tolerance=tolerance,
    )
    run_with_display(lambda display: create_swarm(base, choices, options, display), as_json)


@app.command("reform")
def reform(
    text: Annotated[
        str | None, typer.Argument(metavar="REFORM", help="The reform of another founder; none: propose one.")
    ] = None,
    committee: Annotated[
        list[str] | None,
        typer.Option("--committee", help="Peer of the new committee, repeatable. [default: the founders]"),
    ] = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Name a new committee by hand, as founders.

    When no quorum of the old one can be reached. For founders, while their nodes are stopped. The first
    proposes and sends what this prints to the others, who each give it to this command, until a quorum of
    founders has signed. Then resume.

    Example: sterna swarm reform --committee 12D3KooW... --committee 12D3KooX...
    """
    done = reform_swarm(home, text, tuple(committee or ()))
    if as_json:
        emit(done)
        return
    console.print(f"round {done['round']} ends without a merge; then decide: {', '.join(done['committee'])}")
    if done["done"]:
        console.print("enough founders signed: sterna resume; others take it from you, or with:\n")
    else:
        console.print(f"{done['missing']} more founders must sign, each with:\n")
    console.print(f"  sterna swarm reform {done['reform']}\n")
