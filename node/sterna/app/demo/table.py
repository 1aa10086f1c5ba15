"""The demo's screen: one live row per peer, and the tables at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from sterna.app.demo.processes import DemoPeer

DIGEST_LETTERS = 12


def live_table(peers: Sequence[DemoPeer], *, rounds: int, note: str) -> Table:
    """One row per peer: what it is doing, its training loss, the last certified slate."""
    table = Table(title=f"A swarm of {len(peers)} processes, {rounds} rounds", caption=note, expand=False)
    for heading in ("peer", "text", "round", "phase", "step", "loss", "slate", "signed", "adapter"):
        table.add_column(
            heading, justify="left" if heading in ("peer", "text", "phase", "adapter") else "right"
        )
    for peer in peers:
        table.add_row(peer.label, peer.data.stem, *_cells(peer.status(), peer.process is not None))
    return table


def _cells(status: dict[str, Any], started: bool) -> tuple[str, ...]:
    if not started:
        return ("", "killed", "", "", "", "", "")
    if not status:
        return ("", "starting", "", "", "", "", "")
    training = status["training"]
    last = status["rounds"][-1] if status["rounds"] else None
    loss = training["loss"]
    return (
        str(status["round"]),
        "train" if training["active"] else str(status["phase"]),
        f"{training['step']}/{training['steps']}" if training["active"] else "",
        f"{loss:.3f}" if loss is not None else "",
        str(last["slate_size"]) if last else "",
        str(last["signatures"]) if last else "",
        str(status["adapter_digest"])[:DIGEST_LETTERS] if last else "",
    )


def loss_table(report: dict[str, Any]) -> Table:
    """Held-out losses before and after, per text, beside what each peer reaches alone."""
    before, after = report["union_loss_before"], report["union_loss_after"]
    table = Table(
        title=f"Held-out loss, nats per token; all texts: base {before:.3f}, swarm {after:.3f}", expand=False
    )
    for heading in (
        "peer",
        "text",
        "base, own text",
        "swarm, own text",
        "alone, all texts",
        "swarm, all texts",
    ):
        table.add_column(heading, justify="left" if heading in ("peer", "text") else "right")
    for peer in report["peers"]:
        table.add_row(
            peer["label"],
            peer["text"],
            f"{peer['own_loss_before']:.3f}",
            f"{peer['own_loss_after']:.3f}",
            f"{peer['alone_loss']:.3f}",
            f"{peer['loss_after']:.3f}",
        )
    return table
