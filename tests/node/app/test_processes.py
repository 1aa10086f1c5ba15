"""Commands that run others with --json pass on why they failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from sterna.app.demo.processes import run_json
from sterna.errors import NodeError


@pytest.mark.asyncio
async def test_a_command_that_fails_says_why_in_words(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match=r"`sterna status` ended with code 2: no node has run in") as failed:
        await run_json("status", "--home", str(tmp_path))
    assert "{" not in str(failed.value)
