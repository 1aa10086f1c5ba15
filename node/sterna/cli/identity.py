"""`sterna init`: this node's key."""

from __future__ import annotations

import typer

from sterna.app import membership
from sterna.app.homes import open_home
from sterna.cli.output import HomeOption, JsonFlag, console, emit
from sterna_protocol.wire.ids import peer_name
from sterna_protocol.wire.signing import SigningKey


def init(home: HomeOption = None, as_json: JsonFlag = False) -> None:
    """Create this node's key, or show the one it has.

    The key is the node's name in every swarm; it never leaves this machine.

    Example: sterna init
    """
    with open_home(home) as store:
        peer = peer_name(SigningKey.from_seed(store.key()).peer)
        if as_json:
            emit({"peer": peer, "home": str(store.home)})
            return
        console.print(f"peer  {peer}\nhome  {store.home}")
        console.print("next  sterna swarm create --base nano --data FILE, or sterna join TICKET --data FILE")


app = typer.Typer(no_args_is_help=True, help="Give this node a new key.", rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Give this node a new key."""


@app.command("rotate")
def rotate(home: HomeOption = None, as_json: JsonFlag = False) -> None:
    """Give this node a new key in its swarms.

    The old and the new key sign it. The node goes over to it by itself in the round that certifies it; from
    then on everybody refuses the old one. Keep a copy of the new key file. Addresses in old tickets name
    the old key: hand out new ones.

    Example: sterna id rotate
    """
    done = membership.rotate(home)
    if as_json:
        emit(done)
        return
    console.print(f"old  {done['old']}\nnew  {done['new']}")
    console.print("in force from the next round that is certified; let the node run (sterna resume)")
