"""`sterna verify`: recompute a round's merge from its deltas, or the chain without one contributor."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from sterna.app.light import Format, verify_round, verify_without
from sterna.cli.ignored import is_given
from sterna.cli.join import TicketArgument
from sterna.cli.output import JsonFlag, console, emit, notices
from sterna.errors import ConfigError


def verify(
    context: typer.Context,
    ticket: TicketArgument,
    round_: Annotated[
        int | None, typer.Option("--round", min=1, help="Round to recompute. [default: the newest]")
    ] = None,
    without: Annotated[
        str | None,
        typer.Option(
            help="A peer's id or its beginning: replay all slates without its deltas, write the adapter."
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where to write the adapter without the peer.")
    ] = Path("adapter"),
    format_: Annotated[
        Format, typer.Option("--format", help="Of that adapter: peft (a folder) or gguf (for llama.cpp).")
    ] = Format.PEFT,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to look for peers.")] = 60.0,
    as_json: JsonFlag = False,
) -> None:
    """Recompute a round's merge from its deltas.

    The chain of certificates is checked up to it. When the deltas are past their retention the certificate
    alone is checked, and the answer says so. With --without the merges are done again as if the peer had
    sent nothing.

    Example: sterna verify sterna1... --round 3
    """
    for name, option in (("output", "--output"), ("format_", "--format")):
        if without is None and is_given(context, name):
            raise ConfigError(f"{option} does nothing without --without PEER; sterna pull writes the adapter")
    if without is not None:
        with notices.status("fetching certificates and deltas, merging again without the peer"):
            replayed = asyncio.run(verify_without(ticket, without, round_, output, format_, timeout=timeout))
        if as_json:
            emit(replayed)
        else:
            _show_without(replayed)
        return
    with notices.status("fetching certificates and deltas, recomputing the merge"):
        result = asyncio.run(verify_round(ticket, round_, timeout=timeout))
    if as_json:
        emit(result)
        return
    how = {
        "recomputed": f"merge of {result['slate_size']} deltas recomputed, same adapter to the bit",
        "certificate": "deltas no longer served; checked by certificate only",
        "void": "void round: the adapter stayed what it was",
    }[result["how"]]
    console.print(
        f"round {result['round']} verified, {result['signatures']} of {result['committee']} signed; {how}\n"
        f"adapter {result['adapter_digest']}",
    )


def _show_without(replayed: dict[str, Any]) -> None:
    first, last = replayed["replayed"][0], replayed["replayed"][-1]
    contributed = ", ".join(map(str, replayed["contributed"]))
    lines = [
        f"{replayed['without']} had deltas in rounds {contributed}",
        f"rounds {first} to {last} replayed without it; adapter {replayed['adapter_digest']}, "
        f"certified with it {replayed['certified_adapter_digest']}",
    ]
    if replayed["by_certificate"]:
        kept = ", ".join(map(str, replayed["by_certificate"]))
        lines.append(f"its deltas of rounds {kept} are still in it: those slates are no longer served")
    lines.append(f"written to {replayed['path']}")
    console.print("\n".join(lines))
