"""Sterna from Python: what the commands do, as plain functions.

``pull`` and ``verify`` run an event loop of their own; from async code call ``sterna.app.light`` instead.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Literal

from sterna.app.founding import find_base
from sterna.app.light import Format, pull_adapter, verify_round, verify_without
from sterna.train.base import Base


def load_base(name: str) -> Base:
    """The open base called ``name``: one that ships ("nano"), or a path to a base file.

    Raises:
        ConfigError: there is none, or the file is not a base.
    """
    return find_base(name).base


def pull(
    ticket: str,
    output: Path | str,
    *,
    format: Literal["peft", "gguf", "sterna"] = "peft",
    timeout: float = 60.0,
) -> dict[str, Any]:
    """Fetch, verify and write the newest certified adapter of a swarm; as `sterna pull --json`.

    Args:
        timeout: seconds to look for peers.

    Raises:
        MalformedMessage: the ticket is not one.
        Unreachable: nobody of the swarm answers, or it has no certified round yet.
        VerificationError: what the peers show contradicts the ticket.
        ConfigError: ``output`` holds something else, or GGUF is asked for and the swarm's base is not here.
    """
    return asyncio.run(pull_adapter(ticket, Path(output), Format(format), timeout=timeout))


def verify(
    ticket: str,
    *,
    round_: int | None = None,
    without: str | None = None,
    output: Path | str = "adapter",
    format: Literal["peft", "gguf"] = "peft",
    timeout: float = 60.0,
) -> dict[str, Any]:
    """Check a swarm's chain and recompute the merge of one round; as `sterna verify --json`.

    Args:
        without: the id of a peer: replay the slates up to that round without its deltas instead, and write
            the adapter they give to ``output``.

    Raises:
        MalformedMessage: the ticket or the peer id is not one.
        ConfigError: the peer ``without`` has no delta there, or ``output`` holds something else.
        VerificationError: the certificate does not follow from its deltas, or from the chain before it.
        Unreachable: nobody of the swarm answers, the round is not certified yet, or its deltas are gone.
    """
    if without is None:
        return asyncio.run(verify_round(ticket, round_, timeout=timeout))
    return asyncio.run(verify_without(ticket, without, round_, Path(output), Format(format), timeout=timeout))
