"""Texts for swarms of real processes whose tests ask who takes part, not what is learned."""

from __future__ import annotations

from pathlib import Path

from sterna.app.demo.samples import sample_texts

CHARACTERS = 60_000
"""Some 20,000 tokens of each: a node that has 8,192 held-out tokens reads as many to judge an adapter, which
takes longer than the one or two steps of such a test."""


def short_texts(folder: Path) -> list[Path]:
    """The beginnings of the shipped samples, in their order, as files in ``folder``."""
    texts = [folder / text.name for text in sample_texts()]
    for short, whole in zip(texts, sample_texts(), strict=True):
        short.write_text(whole.read_text("utf-8")[:CHARACTERS], "utf-8")
    return texts
