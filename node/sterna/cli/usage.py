"""What is wrong with a command line, in one line."""

from __future__ import annotations

import typer
from pydantic import ValidationError

from sterna.wording import refusal


def is_help(error: typer.TyperException) -> bool:
    """Whether it is no error, but the help of a command that was given nothing."""
    return error.format_message().startswith("Usage: ")


def explain(error: typer.TyperException) -> str:
    """What cannot be, and what to give instead or where to read it."""
    if isinstance(error, typer.BadParameter) and isinstance(error.__cause__, ValidationError) and error.param:
        return refusal(max(error.param.opts, key=len), error.__cause__)
    message = error.format_message()
    context = getattr(error, "ctx", None)
    more = "" if context is None else f"; see `{context.command_path} --help`"
    return f"{message[:1].lower()}{message[1:].rstrip('.')}{more}"
