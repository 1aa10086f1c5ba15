"""`sterna invite`, `revoke` and `leave`: who is in the swarm."""

from __future__ import annotations

from typing import Annotated

import typer

from sterna.app import membership
from sterna.cli.output import HomeOption, JsonFlag, console, emit
from sterna.wording import counted


def invite(
    uses: Annotated[int, typer.Option(min=1, help="Peers that the ticket lets in.")] = 1,
    expires: Annotated[int, typer.Option(min=1, help="Rounds from now on that it is good for.")] = 100,
    may_invite: Annotated[int, typer.Option(min=0, help="Peers that each of them may invite in turn.")] = 0,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Print a ticket that lets others into the swarm.

    Whoever has the ticket can use it: send it as you would send a key. You answer for whom you invite: they
    count with you as one, and go with you if you are revoked.

    Example: sterna invite --uses 3 --expires 50
    """
    made = membership.invite(home, uses=uses, rounds=expires, may_invite=may_invite)
    if as_json:
        emit(made)
        return
    peers = counted(uses, "peer")
    console.print(f"Lets {peers} in, up to round {made['last_round']}:\n")
    console.print(f"  sterna join {made['ticket']} --data FILE\n")


def revoke(
    peer: Annotated[
        str,
        typer.Argument(
            metavar="PEER", help="The peer to cut off: its id, or as much of it as `sterna peers` shows."
        ),
    ],
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Cut a peer off, and everybody whom it invited.

    For founders, and for whoever invited it, directly or through others. It holds on every node alike from
    the next round that is certified; the keys never come back.

    Example: sterna revoke 12D3KooW...
    """
    done = membership.revoke(home, peer)
    if as_json:
        emit(done)
        return
    console.print(f"signed; {done['revoked']} is out from the next round that is certified")
    for below in done["below"]:
        console.print(f"with it goes {below}")


def leave(home: HomeOption = None, as_json: JsonFlag = False) -> None:
    """Leave the swarm, so that nobody waits for this peer any more.

    Its node follows until you stop it. To return, join with a new invite.

    Example: sterna leave
    """
    done = membership.leave(home)
    if as_json:
        emit(done)
        return
    console.print("signed; let the node run (sterna resume) until the next round is certified, then stop it")
