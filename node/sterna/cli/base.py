"""`sterna base`: the ternary models this installation has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sterna.app.exporting import ModelFormat, export_base
from sterna.app.founding import base_facts, list_bases
from sterna.app.importing import import_base
from sterna.cli.output import HomeOption, JsonFlag, console, emit, notices
from sterna.formats.gguf_base import LinearType

app = typer.Typer(no_args_is_help=True, help="The frozen ternary models.", rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """The frozen ternary models."""


@app.command("list")
def list_(home: HomeOption = None, as_json: JsonFlag = False) -> None:
    """List the bases that can be trained over.

    Example: sterna base list
    """
    bases = list_bases(home)
    if as_json:
        emit({"bases": bases})
        return
    for base in bases:
        _show(base)


@app.command("import")
def import_(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a Hugging Face checkpoint.")],
    name: Annotated[str | None, typer.Option(help="What the base is called. [default: the folder's]")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The file to write. [default: in the home's bases]")
    ] = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a base file of a ternary checkpoint, exactly.

    Weights may be packed as BitNet's and Falcon-E's, or numbers that are -s, 0 and s with one s a matrix, a
    row, or a row and group of columns. The same checkpoint and name give the same file on every machine;
    whoever joins a swarm over it needs that file in the folder `bases` of their home.

    Example: sterna base import Falcon-E-1B-Base/ --name falcon-e
    """
    base = import_base(checkpoint, out, name=name, home=home)
    facts = base_facts(base.path.stem, base)
    if as_json:
        emit({"path": str(base.path), **facts})
        return
    _show(facts)
    chosen = base.path.stem if out is None else out
    console.print(f"  sterna swarm create --base {chosen} --data notes.jsonl", soft_wrap=True)


@app.command("export")
def export(
    base: Annotated[str, typer.Argument(help="Base to write; see `sterna base list`.")],
    format_: Annotated[ModelFormat, typer.Option("--format", help="hf: a folder for transformers and PEFT.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Where to write; nothing may be there yet.")],
    linears: Annotated[
        LinearType | None, typer.Option("--type", help="How GGUF holds the linears. [default: f16]")
    ] = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Write a base for other tools, to put a pulled adapter on.

    Example: sterna base export nano --format hf --out nano-hf/
    """
    written = export_base(base, out, format_, linears=linears, home=home)
    if as_json:
        emit(written)
        return
    console.print(
        f"base {written['base']} ({written['digest'][:16]}), {written['bytes'] / 1e6:.1f} MB\n"
        f"written to {written['path']}",
        soft_wrap=True,
    )
    if written["note"]:
        notices.print(written["note"], soft_wrap=True)


def _show(base: dict[str, Any]) -> None:
    console.print(
        f"{base['name']:<12} {base['parameters'] / 1e6:.1f} M parameters  {base['bytes'] / 1e6:.1f} MB  "
        f"{base['digest'][:16]}\n  {base['provenance']}",
        soft_wrap=True,
    )
