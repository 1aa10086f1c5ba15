"""`sterna base`: the ternary models this installation has."""

from __future__ import annotations

import typer

from sterna.app.founding import list_bases
from sterna.cli.output import JsonFlag, console, emit

app = typer.Typer(no_args_is_help=True, help="The frozen ternary models.", rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """The frozen ternary models."""


@app.command("list")
def list_(as_json: JsonFlag = False) -> None:
    """List the bases that can be trained over.

    Example: sterna base list
    """
    bases = list_bases()
    if as_json:
        emit({"bases": bases})
        return
    for base in bases:
        console.print(
            f"{base['name']:<12} {base['parameters'] / 1e6:.1f} M parameters  {base['bytes'] / 1e6:.1f} MB  "
            f"{base['digest'][:16]}\n  {base['provenance']}",
            soft_wrap=True,
        )
