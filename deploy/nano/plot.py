"""Draws the loss curve of a pretraining run.

Usage::

    python deploy/nano/plot.py --run /tmp/nano/run --out docs/experiments/nano-curve.png
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from texts import DOMAINS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with (options.run / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    figure, axes = plt.subplots(figsize=(7, 4))
    minutes = [float(row["cpu_seconds"]) / 60 for row in rows]
    axes.plot(
        minutes, [float(row["train"]) for row in rows], color="0.75", linewidth=0.8, label="train, mixed"
    )
    for domain in DOMAINS:
        checks = [(x, float(row[domain])) for x, row in zip(minutes, rows, strict=True) if row[domain]]
        axes.plot(*zip(*checks, strict=True), marker=".", label=f"held out, {domain}")
    axes.axhline(3.6, color="black", linestyle=":", linewidth=0.8, label="aim for the mean")
    axes.set(xlabel="CPU minutes, one thread", ylabel="nats per token", ylim=(2.5, 6.5))
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(options.out, dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    main()
