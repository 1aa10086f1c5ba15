"""A picture of one run: how much each peer sent, and when the rounds closed."""

from __future__ import annotations

from pathlib import Path

from sterna.errors import ConfigError
from sterna.simulate.report import Report


def write_plot(report: Report, path: Path) -> None:
    """Write the picture; its format is that of the file's ending.

    Raises:
        ConfigError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib: pip install 'sterna[dev]'") from error
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    load, pace = figure.subplots(1, 2)
    rounds = max(1, report.certified_rounds)
    numbers = range(len(report.messages_by_node))
    load.bar(numbers, [count / rounds for count in report.messages_by_node], color="#4878a8", width=1.0)
    load.set(xlabel="peer", ylabel="messages sent per round", title="load per peer")
    pace.step([0.0, *report.closed_at], range(len(report.closed_at) + 1), where="post", color="#4878a8")
    if report.healed_at is not None:
        pace.axvline(report.healed_at, color="#b04040", linestyle=":", label="faults end")
        pace.legend()
    pace.set(xlabel="virtual seconds", ylabel="rounds closed", title=f"seed {report.seed}")
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--plot {path} cannot be written: {error}") from error
