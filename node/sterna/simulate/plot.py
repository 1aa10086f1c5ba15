"""A picture of one run: how much each peer sent, when the rounds closed, and what was learned in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sterna.errors import ConfigError
from sterna.simulate.report import Learned, Report


def write_plot(report: Report, path: Path) -> None:
    """Write the picture; its format is that of the file's ending.

    Raises:
        ConfigError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib: pip install 'sterna[dev]'") from error
    panels = 2 if report.learned is None else 3
    figure = Figure(figsize=(4.5 * panels, 3.6), layout="constrained")
    load, pace, *rest = figure.subplots(1, panels)
    rounds = max(1, report.certified_rounds)
    numbers = range(len(report.messages_by_node))
    load.bar(numbers, [count / rounds for count in report.messages_by_node], color="#4878a8", width=1.0)
    load.set(xlabel="peer", ylabel="messages sent per round", title="load per peer")
    pace.step([0.0, *report.closed_at], range(len(report.closed_at) + 1), where="post", color="#4878a8")
    if report.healed_at is not None:
        pace.axvline(report.healed_at, color="#b04040", linestyle=":", label="faults end")
        pace.legend()
    pace.set(xlabel="virtual seconds", ylabel="rounds closed", title=f"seed {report.seed}")
    if report.learned is not None:
        _draw_losses(rest[0], report.learned)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--plot {path} cannot be written: {error}") from error


def _draw_losses(axes: Any, learned: Learned) -> None:
    rounds = range(len(learned.losses) + 1)
    axes.plot(rounds, [learned.loss_before, *learned.losses], color="#4878a8", marker=".")
    axes.axhline(
        learned.loss_clean, color="#48a868", linestyle=":", label="nobody attacks, after the last round"
    )
    what = learned.rule if learned.attack is None else f"{learned.attack} against {learned.rule}"
    axes.set(xlabel="round", ylabel="held-out loss, nats per token", title=what)
    axes.legend()
