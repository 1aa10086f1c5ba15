"""The results of averaging.py as a table and as a plot."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from averaging_trials import TRIALS

NAME_HEIGHT = 0.023
"""Nats per token that a name in the plot takes."""


def print_table(rows: Sequence[dict[str, Any]], clients: int) -> None:
    """One line a trial; "share" is of the gain of ``central``, "over pair" how far below it in each seed."""
    rows = [row for row in rows if row["clients"] == clients]
    for run in dict.fromkeys(row["run"] for row in rows):
        print(f"{clients} clients, {run}\n")
        print("| trial | rate | bytes | seeds | half way | end | share of central's gain | below pair |")
        print("|---|---|---|---|---|---|---|---|")
        by_trial: dict[str, dict[int, dict[str, Any]]] = {}
        for row in rows:
            if row["run"] == run:
                by_trial.setdefault(row["trial"], {})[row["seed"]] = row
        for name, by_seed in by_trial.items():
            ends = [row["after"][-1] for row in by_seed.values()]
            shares = [
                100 * (row["before"] - row["after"][-1]) / (row["before"] - other["after"][-1])
                for seed, row in by_seed.items()
                if (other := by_trial.get("central", {}).get(seed))
            ]
            below = [
                other["after"][-1] - row["after"][-1]
                for seed, row in sorted(by_seed.items())
                if (other := by_trial.get("pair", {}).get(seed))
            ]
            first = next(iter(by_seed.values()))
            cells = [
                name,
                f"{first['rate']:g}",
                f"{first['bytes']:,}" if first["bytes"] else "",
                str(len(by_seed)),
                f"{statistics.mean(row['after'][0] for row in by_seed.values()):.3f}",
                f"{statistics.mean(ends):.3f} ± {(max(ends) - min(ends)) / 2:.3f}",
                f"{statistics.mean(shares):.1f} %" if shares else "",
                " ".join(f"{value:+.3f}" for value in below),
            ]
            print("| " + " | ".join(cells) + " |")
        print()


def draw(rows: Sequence[dict[str, Any]], clients: int, out: Path) -> None:
    """The runs of the length that stands first in the file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in rows if row["clients"] == clients]
    rows = [row for row in rows if row["run"] == rows[0]["run"]]
    figure, axes = plt.subplots(figsize=(7, 4.2))
    named: dict[float, float] = {}  # where the last name stands among those of the same bytes
    colours = {"cycle": "C0", "fixed": "C1", "pair": "C2", "svd": "C3"}
    by_mean = sorted(
        dict.fromkeys(row["trial"] for row in rows),
        key=lambda name: statistics.mean(row["after"][-1] for row in rows if row["trial"] == name),
    )
    for name in by_mean:
        mine = [row for row in rows if row["trial"] == name]
        ends = [row["after"][-1] for row in mine]
        mean = statistics.mean(ends)
        if name == "central":
            axes.axhline(mean, color="black", linestyle=":", linewidth=0.8, label="central")
            continue
        sent = mine[0]["bytes"] / 1000
        spread = [[mean - min(ends)], [max(ends) - mean]]
        axes.errorbar(sent, mean, yerr=spread, fmt="o", color=colours[TRIALS[name].scheme], markersize=4)
        named[sent] = max(mean, named.get(sent, 0) + NAME_HEIGHT)
        axes.annotate(name, (sent, named[sent]), textcoords="offset points", xytext=(5, -2), fontsize=7)
    axes.set(xscale="log", xlim=(3, 2500))  # room for the names on the right
    axes.set(xlabel="kB a peer sends in a round", ylabel="held-out loss, nats per token")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(out, dpi=120, metadata={"Software": None})
