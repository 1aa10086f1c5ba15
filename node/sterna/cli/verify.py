"""`sterna verify`: recompute a round's merge from its deltas."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from sterna.app.light import verify_round
from sterna.cli.join import TicketArgument
from sterna.cli.output import JsonFlag, console, emit, notices


def verify(
    ticket: TicketArgument,
    round_: Annotated[
        int | None, typer.Option("--round", min=1, help="Round to recompute. [default: the newest]")
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to look for peers.")] = 60.0,
    as_json: JsonFlag = False,
) -> None:
    """Check the chain of certificates and recompute a round's merge from its deltas.

    When the deltas are past their retention the certificate alone is checked, and the answer says so.

    Example: sterna verify sterna1... --round 3
    """
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
        soft_wrap=True,
    )
