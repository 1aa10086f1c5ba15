"""The tables of `sterna bench kernels`."""

from __future__ import annotations

from statistics import geometric_mean
from typing import TYPE_CHECKING

from rich.table import Table

from sterna.bench.shares import ceiling_of
from sterna.cli.output import console, show_table

if TYPE_CHECKING:
    from sterna.bench.kernels import KernelReport


def show_kernels(report: KernelReport) -> None:
    """Print limits, products, decoding and threads."""
    limits = ", ".join(f"{name} {gops:.0f}" for name, gops in report.limits.items())
    console.print(f"limits of one core, GOPS: {limits}")
    console.print(f"reading memory: {report.decode['read']:.1f} GB/s\n")
    _show_products(report)
    console.print("decoding, weights cold, as a share of reading them:")
    for name, speed in report.decode.items():
        if name != "read":
            console.print(f"  {name:<16}{speed:6.1f} GB/s{speed / report.decode['read']:8.0%}")
    for name, speedups in report.two_threads.items():
        figures = ", ".join(f"M = {rows}: {speedup:.2f}x" for rows, speedup in speedups.items())
        console.print(f"two threads over one, {name}: {figures}")


def _show_products(report: KernelReport) -> None:
    table = Table(
        title="GOPS, one thread, geometric means over the shapes; share of the limit; over torch fp32"
    )
    for heading in ("M", "direction", "system", "GOPS", "of limit", "x torch"):
        table.add_column(heading, justify="left" if heading in ("direction", "system") else "right")
    for rows, direction in dict.fromkeys((f.product.rows, f.product.direction) for f in report.figures):
        chosen = [f for f in report.figures if (f.product.rows, f.product.direction) == (rows, direction)]
        means = {name: geometric_mean([f.gops[name] for f in chosen]) for name in chosen[0].gops}
        for name, mean in means.items():
            limit = ceiling_of(name, report.limits)
            # A variant that may use nothing beyond AVX2 is compared with a torch that may not either.
            torch = means["torch fp32 avx2" if name in ("avx2", "torch fp32 avx2") else "torch fp32"]
            share = "" if limit is None else f"{mean / limit:.0%}"
            table.add_row(str(rows), direction, name, f"{mean:.1f}", share, f"{mean / torch:.2f}")
        table.add_section()
    show_table(table)
