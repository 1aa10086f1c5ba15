"""`sterna pull`: the merged adapter, verified, without joining."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from sterna.app.light import Format, pull_adapter
from sterna.cli.join import TicketArgument
from sterna.cli.output import JsonFlag, console, emit, notices
from sterna.wording import counted


def pull(
    ticket: TicketArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write.")] = Path("adapter"),
    format_: Annotated[
        Format,
        typer.Option(
            "--format",
            help="peft: a folder; gguf: for llama.cpp, over a base that is here; sterna: proves itself.",
        ),
    ] = Format.PEFT,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to look for peers.")] = 60.0,
    as_json: JsonFlag = False,
) -> None:
    """Fetch the newest certified adapter and write it.

    Nothing is believed: the charter is checked against the ticket, every certificate against the one
    before, and the adapter against the last certificate.

    Example: sterna pull sterna1... --format peft -o adapter/
    """
    with notices.status("looking for peers and checking the chain of certificates"):
        pulled = asyncio.run(pull_adapter(ticket, output, format_, timeout=timeout))
    if as_json:
        emit(pulled)
        return
    console.print(
        f"round {pulled['round']}, {counted(pulled['signatures'], 'signature')}, "
        f"adapter {pulled['adapter_digest']}\n"
        f"written to {pulled['path']}",
    )
