"""Draws time and memory of a LoRA step beside torch, from what the benchmark printed.

Usage::

    sterna bench model --shape 2b --tokens 512 --json > times.json
    for shape in 1b 2b 7b 13b; do
        sterna bench model --shape $shape --no-times --return-freed --rivals bf16 --json > memory-$shape.json
    done
    python deploy/experiments/step_chart.py times.json memory-*.json --out docs/step.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

OURS, THEIRS = "#1f77b4", "#bbbbbb"
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("times", type=Path)
    parser.add_argument("memory", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("step.png"))
    options = parser.parse_args()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    draw_times(left, json.loads(options.times.read_text()))
    draw_memory(right, [json.loads(path.read_text()) for path in options.memory])
    figure.savefig(options.out, dpi=150)


def draw_times(axes: plt.Axes, report: dict[str, Any]) -> None:
    systems = [report["ours"], *report["rivals"].values()]
    systems = [system for system in systems if "step" in system["seconds"]]
    seconds = [system["seconds"]["step"] for system in systems]
    colours = [OURS, *[THEIRS] * (len(systems) - 1)]
    bars = axes.barh([system["name"] for system in systems], seconds, color=colours)
    axes.bar_label(bars, [f"{value:.1f} s" for value in seconds], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    chosen = report["choices"]
    axes.set_title(f"one step, {chosen['shape']}, {chosen['tokens']} tokens, rank {chosen['rank']}")
    axes.set_xlabel("seconds")
    axes.spines[["top", "right"]].set_visible(False)


def draw_memory(axes: plt.Axes, reports: list[dict[str, Any]]) -> None:
    reports = sorted(reports, key=lambda report: report["base_bytes"])
    places = range(len(reports))
    rivals = [report["rivals"]["bf16"] for report in reports]
    for shift, label, colour, hatch, values in (
        (-0.2, "sterna", OURS, "", [report["ours"]["peak_bytes"] for report in reports]),
        (0.2, "nn.Linear bf16 + peft", THEIRS, "", [rival["peak_bytes"] for rival in rivals]),
        (0.2, "its weights alone (not run)", "white", "//", [weights(rival) for rival in rivals]),
    ):
        shown = [(place + shift, value / GIB) for place, value in zip(places, values, strict=True) if value]
        bars = axes.bar(
            [place for place, _ in shown],
            [height for _, height in shown],
            0.4,
            label=label,
            color=colour,
            hatch=hatch,
            edgecolor=THEIRS if hatch else None,
        )
        axes.bar_label(bars, [f"{height:.1f}" for _, height in shown], fontsize=8)
    axes.set_xticks(list(places), [report["choices"]["shape"] for report in reports])
    axes.set_title("peak memory, 128 tokens")
    axes.set_ylabel("GiB")
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)


def weights(rival: dict[str, Any]) -> int | None:
    """Bytes of the weights of a rival whose peak was not measured."""
    return None if rival["peak_bytes"] is not None else int(rival["least_bytes"])


if __name__ == "__main__":
    main()
