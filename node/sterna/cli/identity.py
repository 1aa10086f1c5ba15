"""`sterna init`: this node's key."""

from __future__ import annotations

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
