"""The Sterna node, and Sterna from Python: ``sterna.pull``, ``sterna.verify``, ``sterna.load_base``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sterna.api import load_base, pull, verify

__all__ = ["load_base", "pull", "verify"]


def __getattr__(name: str) -> Any:
    """Import on first use: the network process imports this package too and needs none of it."""
    if name not in __all__:
        raise AttributeError(f"module 'sterna' has no attribute {name!r}")
    from sterna import api

    return getattr(api, name)
