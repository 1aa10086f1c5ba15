"""`sterna status` and `peers` of a home whose node wrote its status."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sterna.app.names import find_peer
from sterna.app.running import peers_missing
from sterna.app.status import write_status
from sterna.cli import run
from sterna.cli.join import Lines
from sterna_protocol.wire.ids import peer_name
from tests.support.charters import key, small_charter

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
        "pid": os.getpid(),
        "peer": NAMES[0],
        "swarm": "ab" * 32,
        "name": "swarm",
        "ticket": "sterna1ticket",
        "ticket_invites": True,
        "round": 13,
        "phase": "train",
        "class": "founder",
        "committee": NAMES,
        "peers": NAMES[1:],
        "peers_missing": 0,
        "min_deltas": 2,
        "roll": [founder, *roll],
        "training": {"active": False, "step": 0, "steps": 2, "loss": None},
        "adapter_digest": "cd" * 32,
        "certified_rounds": 12,
        "errors": [],
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
    assert all(word in shown for word in ("connected", "founder", "this one", "merged", "since"))
    words = [word for word in shown.split() if word.startswith("12D3KooW")]
    assert len(words) == 5
    assert {find_peer(word, PEERS) for word in words} == set(PEERS)


def test_a_founder_alone_is_told_what_it_waits_for_and_what_the_other_machine_types(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_status(tmp_path, status(peers=[], peers_missing=1))
    assert run(["status", "--home", str(tmp_path)]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("waiting")]
    assert line == (
        "waiting    for 1 more peer: a round is merged from the deltas of 2 or more; "
        "on another machine: sterna join sterna1ticket --data FILE"
    )


@pytest.mark.parametrize(
    "changes",
    [{}, {"peers_missing": 1, "pid": 0}],
    ids=["enough are connected", "the node is stopped"],
)
def test_nobody_is_waited_for_where(
    changes: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_status(tmp_path, status(**changes))
    assert run(["status", "--home", str(tmp_path)]) == 0
    assert "waiting" not in capsys.readouterr().out


def test_a_member_whose_ticket_invites_nobody_does_not_offer_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_status(tmp_path, status(peers=[], peers_missing=2, ticket_invites=False))
    assert run(["status", "--home", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "for 2 more peers" in shown and "sterna join" not in shown


@pytest.mark.parametrize(
    ("min_deltas", "connected", "missing"), [(1, 0, 0), (2, 0, 1), (2, 1, 0), (4, 1, 2), (2, 5, 0)]
)
def test_as_many_are_missing_as_a_merge_needs_beside_this_one(
    min_deltas: int, connected: int, missing: int
) -> None:
    assert peers_missing(small_charter(min_deltas=min_deltas), connected) == missing


def test_what_a_running_node_says_is_one_line_an_event(capsys: pytest.CaptureFixture[str]) -> None:
    display = Lines()
    display.event("waiting", peers=1, min_deltas=2)
    display.event("trouble", why="nobody serves it")
    display.event("peer.gone", peer=NAMES[1])
    assert capsys.readouterr().out.splitlines() == [
        "waiting            for 1 more peer: a round is merged from the deltas of 2 or more",
        "trouble            nobody serves it",
        f"peer.gone          peer {NAMES[1]}",
    ]
