"""The protocol is a library by itself, and so are its tests."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]


def imported(path: Path) -> set[str]:
    """The modules that ``path`` names in its imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_the_tests_of_the_protocol_need_neither_the_node_nor_the_kernels() -> None:
    waiting = sorted((ROOT / "tests/protocol").rglob("*.py"))
    seen: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in imported(path):
            assert name.split(".")[0] not in ("sterna", "sterna_kernels"), f"{path} imports {name}"
            own = (ROOT / name.replace(".", "/")).with_suffix(".py")
            if own.exists():
                waiting.append(own)
    assert ROOT / "tests/support/virtual_network.py" in seen
