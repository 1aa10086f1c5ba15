"""`sterna status` and `peers` of a home whose node wrote its status."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sterna.app.names import find_peer
from sterna.app.status import write_status
from sterna.cli import run
from sterna_protocol.wire.ids import peer_name
from tests.support.charters import key

PEERS = [key(number).peer for number in range(3)]
NAMES = [peer_name(peer) for peer in PEERS]


def status(**changes: Any) -> dict[str, Any]:
    """What a founder's node says of itself that two friends are connected to."""
    roll = [
        {"peer": name, "class": "invited", "inviter": NAMES[0], "since": 1, "merged": 12}
        for name in NAMES[1:]
    ]
    founder = {"peer": NAMES[0], "class": "founder", "inviter": "", "since": 0, "merged": 12}
    return {
        "pid": 0,
        "peer": NAMES[0],
        "committee": NAMES,
        "peers": NAMES[1:],
        "roll": [founder, *roll],
    } | changes


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write_status(tmp_path, status())
    return tmp_path


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output is a terminal of 80 columns."""
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "80")


def test_in_a_pipe_ids_are_whole(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["peers", "--home", str(home)]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in NAMES)
    assert shown.count(NAMES[0]) == 3


@pytest.mark.usefixtures("terminal")
def test_in_a_terminal_a_peer_is_one_line_and_is_found_by_what_is_shown(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["peers", "--home", str(home)]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    words = [word for word in shown.split() if word.startswith("12D3KooW")]
    assert len(words) == 5
    assert {find_peer(word, PEERS) for word in words} == set(PEERS)
