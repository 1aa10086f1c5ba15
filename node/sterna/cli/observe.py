"""`sterna status`, `peers` and `rounds`: what the node of this home does and did."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from sterna.app.names import shortened
from sterna.app.observe import node_status, round_log
from sterna.cli.join import waiting_line
from sterna.cli.output import HomeOption, JsonFlag, console, emit, show_table


def status(home: HomeOption = None, as_json: JsonFlag = False) -> None:
    """Show what this node does now.

    Example: sterna status
    """
    now = node_status(home)
    if as_json:
        emit(now)
        return
    training = now["training"]
    rows: dict[str, Any] = {
        "node": "running" if now["running"] else "stopped (sterna resume goes on)",
        "peer": now["peer"],
        "swarm": f"{now['name']} ({now['swarm'][:12]})",
        "round": f"{now['round']}, {now['phase']}",
        "committee": len(now["committee"]),
        "class": now["class"],
        "connected": len(now["peers"]),
        "training": f"step {training['step']}/{training['steps']}" if training["active"] else "no",
        "adapter": now["adapter_digest"],
        "certified": f"{now['certified_rounds']} rounds",
    }
    if now.get("served") is not None:
        rows["serving"] = _serving(now["served"], now["judged"], held_back=now["held_back"])
    if now["running"] and now.get("peers_missing"):
        rows["waiting"] = waiting_line(now["peers_missing"], now["min_deltas"])
        if now["ticket_invites"]:
            rows["waiting"] += f"; on another machine: sterna join {now['ticket']} --data FILE"
    if training["loss"] is not None:
        rows["loss"] = f"{training['loss']:.3f} nats per token in the last training step"
    for error in now["errors"]:
        rows["trouble"] = error
    rows["ticket"] = now["ticket"]
    for key, value in rows.items():
        console.print(f"{key:<10} {value}")


def _serving(served: dict[str, Any], judged: dict[str, Any], *, held_back: bool) -> str:
    """Which adapter answers, and why not the newest."""
    what = f"round {served['round']}" if served["round"] else "the base alone"
    line = f"{what}, {_loss(served)} on your hold-out text"
    if held_back:
        line += f"; round {judged['round']} is followed but held back: {_loss(judged)}"
    return line


def _loss(judged: dict[str, Any]) -> str:
    return "a loss that is no number" if judged["loss"] is None else f"{judged['loss']:.3f} nats per token"


def peers(home: HomeOption = None, as_json: JsonFlag = False) -> None:
    """List who is in the swarm, and who is connected.

    Beside each stands who invited it, since when it is in, and how many rounds merged a delta of it. In a
    terminal ids are cut to as many letters as tell them apart; every command takes them so.

    Example: sterna peers
    """
    now = node_status(home)
    if as_json:
        emit({"peers": now["peers"], "roll": now["roll"], "running": now["running"]})
        return
    if not now["running"]:
        console.print("the node is stopped; these were its peers when it last ran:")
    known = {entry["peer"]: entry for entry in now["roll"]}
    everybody = sorted({*known, *now["peers"]})
    # Whole for programs; for people as much as `sterna revoke` and the like need.
    names = shortened(everybody) if console.is_terminal else {peer: peer for peer in everybody}
    table = Table()
    for heading in ("peer", "class", "seat", "connected", "rounds merged", "since round", "invited by"):
        # In 80 columns the two longest headings take two lines, and nothing else does.
        table.add_column(heading, no_wrap=heading not in ("rounds merged", "since round"))
    for peer in everybody:
        entry = known.get(peer, {"class": "stranger", "inviter": "", "since": "", "merged": ""})
        table.add_row(
            names[peer],
            entry["class"],
            "yes" if peer in now["committee"] else "",
            "this one" if peer == now["peer"] else "yes" if peer in now["peers"] else "",
            str(entry["merged"]),
            str(entry["since"]),
            names.get(entry["inviter"], entry["inviter"]),
        )
    show_table(table)
    if not now["peers"]:
        console.print("no peers connected; share your ticket (sterna status shows it)")


def rounds(home: HomeOption = None, as_json: JsonFlag = False) -> None:
    """List the rounds this node has seen certified.

    Example: sterna rounds
    """
    log = round_log(home)
    if as_json:
        emit({"rounds": log})
        return
    table = Table()
    for heading in ("round", "slate", "signed", "own delta", "seconds", "adapter"):
        table.add_column(heading, justify="left" if heading in ("adapter", "own delta") else "right")
    for entry in log:
        table.add_row(
            str(entry["round"]),
            str(entry["slate_size"]) if entry["slate_size"] else "void",
            str(entry["signatures"]),
            "merged" if entry["included"] else "",
            f"{entry['seconds']:.1f}",
            entry["adapter_digest"][:16],
        )
    show_table(table)
