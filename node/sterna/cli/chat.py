"""`sterna chat`: talk to the base with the current adapter."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from sterna.app.chat import ChatOptions, Conversation, open_conversation
from sterna.cli.output import MAX_SEED, HomeOption, JsonFlag, console, emit, notices


def chat(
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="Answer this one prompt and end.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Base without the adapter of this home's swarm.")] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(help="PEFT folder, as `sterna pull` writes it, over --base or the base it names."),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without roles.")] = False,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 120,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token.")] = 0.7,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the sampling.")] = 0,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Talk to the model of this home's swarm, with its newest certified adapter, or with a pulled one.

    Example: sterna chat --prompt "What is a river?"
    """
    options = ChatOptions(
        base=base, adapter=adapter, raw=raw, max_tokens=max_tokens, temperature=temperature, seed=seed
    )
    asyncio.run(_talk(options, home, prompt, as_json))


async def _talk(options: ChatOptions, home: HomeOption, prompt: str | None, as_json: bool) -> None:
    async with open_conversation(options, home) as conversation:
        if prompt is not None or not sys.stdin.isatty():
            text = prompt if prompt is not None else sys.stdin.read()
            if not as_json:
                notices.print(conversation.model)
            await _answer(conversation, text, as_json)
            return
        console.print(f"{conversation.model}. Ctrl-D ends.")
        while True:
            try:
                line = await asyncio.to_thread(input, "> ")
            except EOFError:
                return
            await _answer(conversation, line, as_json)


async def _answer(conversation: Conversation, prompt: str, as_json: bool) -> None:
    pieces = []
    async for piece in conversation.answer(prompt):
        pieces.append(piece)
        if not as_json:
            sys.stdout.write(piece)
            sys.stdout.flush()
    if as_json:
        emit({"prompt": prompt, "answer": "".join(pieces), "model": conversation.model})
    else:
        sys.stdout.write("\n")
