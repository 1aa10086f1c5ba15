"""The command line: results are text or one JSON value, failures one line and a documented exit code."""

from __future__ import annotations

import errno
import json
import logging
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from sterna.cli import EXIT_INTERNAL, LogLines, run
from sterna.cli.output import fail
from sterna_protocol.swarm.ticket import Ticket, encode_ticket

COMMANDS = (
    "demo",
    "init",
    "join",
    "invite",
    "revoke",
    "leave",
    "id rotate",
    "swarm create",
    "swarm reform",
    "resume",
    "status",
    "peers",
    "rounds",
    "pull",
    "verify",
    "chat",
    "base import",
    "base export",
    "simulate",
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv("STERNA_HOME", str(folder))
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"Paragraph {number} tells of terns over the sea." for number in range(40)))
    return path


def one_line_of(captured: str) -> str:
    assert captured.count("\n") == 1, captured
    return captured


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_ends_in_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command.split(), "--help"]) == 0
    assert f"Example: sterna {command}" in capsys.readouterr().out


@pytest.mark.parametrize("group", ["", "swarm", "id", "base", "bench"])
def test_every_command_is_said_whole_in_the_list(
    group: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    run([*group.split(), "--help"])
    assert "..." not in capsys.readouterr().out.partition("Commands:")[2]


def test_founding_says_what_it_takes_where_nothing_is_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    run(["swarm", "create", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for default in ("clip+filter", "byzantine", "invite", "40", "600"):
        assert f"[default: {default}]" in shown.replace("[default: 40; x>=1]", "[default: 40]"), default


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_speaks_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    run([*command.split(), "--help"])
    assert "--json" in capsys.readouterr().out


def test_init_makes_a_key_once(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert run(["init", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert first["peer"].startswith("12D3KooW")
    assert (home / "key").stat().st_mode & 0o777 == 0o600


def test_base_list_names_what_ships(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["base", "list", "--json"]) == 0
    nano, tiny = json.loads(capsys.readouterr().out)["bases"]
    assert (nano["name"], tiny["name"]) == ("nano", "tiny")
    assert tiny["bytes"] <= 150_000
    assert 3e6 <= nano["parameters"] <= 6e6
    assert nano["bytes"] <= 4_000_000


@pytest.mark.parametrize("command", ["status", "peers"])
def test_looking_at_a_home_without_a_node_says_what_to_do(
    command: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([command]) == 2
    assert "sterna join TICKET --data FILE" in one_line_of(capsys.readouterr().err)


def test_rounds_of_a_home_that_is_in_no_swarm(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["init"])
    capsys.readouterr()
    assert run(["rounds"]) == 2
    assert "is in no swarm" in one_line_of(capsys.readouterr().err)


def test_resume_needs_a_swarm(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["resume"]) == 2
    assert "is in no swarm" in one_line_of(capsys.readouterr().err)


@pytest.mark.parametrize("ticket", ["", "sterna1", "sterna1notaticket", "hello", "sterna1" + "z" * 4000])
def test_a_broken_ticket_is_one_line(
    ticket: str, home: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["join", ticket, "--data", str(text)]) == 6
    assert "ticket" in one_line_of(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("empty.txt", b"", "empty.txt"),
        ("binary.txt", bytes(range(256)) * 4, "binary.txt"),
        ("broken.jsonl", b'{"text": "fine"}\n{"text": \n', "broken.jsonl:2"),
        ("field.jsonl", b'{"text": "fine"}\n{"txt": "not"}\n', "field.jsonl:2"),
    ],
)
def test_bad_data_founds_nothing(
    name: str,
    content: bytes,
    where: str,
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert run(["swarm", "create", "--data", str(path)]) == 3
    assert where in one_line_of(capsys.readouterr().err)
    assert not (home / "state.db").exists()


def test_a_missing_data_file_is_one_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["swarm", "create", "--data", "/nowhere/notes.txt"]) in (2, 3)
    assert "/nowhere/notes.txt" in one_line_of(capsys.readouterr().err)


def test_an_unknown_base_lists_the_known_ones(
    home: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["swarm", "create", "--base", "giant", "--data", str(text)]) == 2
    assert "nano" in one_line_of(capsys.readouterr().err)


def test_a_charter_that_cannot_be_names_the_value(
    home: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["swarm", "create", "--data", str(text), "--min-deltas", "1000"]) == 2
    assert one_line_of(capsys.readouterr().err) == "error: --min-deltas 1000: give 64 or less\n"


def test_a_name_that_would_hide_text_is_refused(
    home: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["swarm", "create", "--data", str(text), "--name", "a\tb"]) == 2
    assert "--name 'a\\tb': leave out control characters" in one_line_of(capsys.readouterr().err)


def test_a_demo_of_two_files_is_refused(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", "--data", str(text), "--data", str(text)]) == 2
    assert "3 to 8" in one_line_of(capsys.readouterr().err)


def test_a_demo_starts_nothing_over_a_file_that_cannot_be_trained_on(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(text), "--data", str(text), "--data", str(tmp_path / "none.txt")]
    assert run(["demo", "--folder", str(tmp_path / "demo"), *words, "--json"]) == 3
    assert "none.txt" in json.loads(capsys.readouterr().err.splitlines()[-1])["error"]
    assert not (tmp_path / "demo").exists()


def test_a_demo_does_not_go_on_in_the_homes_of_an_earlier_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "peer-2").mkdir()
    assert run(["demo", "--folder", str(tmp_path)]) == 2
    assert "peer-2 is there already: name an empty folder" in capsys.readouterr().err


TICKET = encode_ticket(Ticket(swarm=b"s" * 32, addresses=()))


def test_a_peer_to_leave_out_is_named_by_its_id(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", TICKET, "--without", "alice"]) == 2
    assert "peer id 'alice' has 5 letters" in one_line_of(capsys.readouterr().err)


def test_an_adapter_without_a_peer_cannot_prove_itself(capsys: pytest.CaptureFixture[str]) -> None:
    peer = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
    assert run(["verify", TICKET, "--without", peer, "--format", "sterna"]) == 2
    assert "choose --format peft or gguf" in one_line_of(capsys.readouterr().err)


@pytest.mark.parametrize("words", [["-o", "adapter"], ["--format", "peft"]])
def test_verify_writes_nothing_unless_a_peer_is_left_out(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", TICKET, *words]) == 2
    assert "does nothing without --without PEER" in one_line_of(capsys.readouterr().err)


def test_chaos_needs_three_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", "--chaos", "--rounds", "2"]) == 2
    assert "at least 3 rounds" in one_line_of(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("pull --no-such-option", "no such option: --no-such-option; see `sterna pull --help`"),
        ("nonsense", "no such command 'nonsense'; see `sterna --help`"),
        ("join", "missing argument 'TICKET'; see `sterna join --help`"),
        ("simulate --peers x", "--peers x: give a whole number"),
        ("swarm create --data x --train-seconds soon", "--train-seconds soon: give a number"),
        ("swarm create --data x --train-seconds inf", "--train-seconds inf: give 604800 or less"),
        ("invite --uses 0", "--uses 0: give 1 or more"),
        ("pull TICKET --format x", "--format: 'x' is not one of 'peft', 'gguf', 'sterna'"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_the_usage_code(
    words: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words.split()) == 2
    assert one_line_of(capsys.readouterr().err) == f"error: {line}\n"


def test_with_json_an_error_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "--peers", "x", "--json"]) == 2
    printed = capsys.readouterr()
    assert json.loads(printed.err) == {"error": "--peers x: give a whole number", "exit_code": 2}
    assert printed.out == ""


@pytest.mark.parametrize("words", [[], ["swarm"]])
def test_a_command_given_nothing_prints_its_help(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words) == 2
    assert capsys.readouterr().err.startswith(f"Usage: {' '.join(['sterna', *words])} [OPTIONS] COMMAND")


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"sterna {version('sterna')}\n"


@pytest.mark.real
def test_a_ticket_whose_peers_are_gone_is_unreachable(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ticket = encode_ticket(
        Ticket(
            swarm=b"s" * 32,
            addresses=("/ip4/127.0.0.1/tcp/1/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN",),
        )
    )
    assert run(["pull", ticket, "--timeout", "1"]) == 4
    assert "ask a member for a fresh ticket" in one_line_of(capsys.readouterr().err)


def test_a_bug_is_one_line_and_a_report(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("surprise")

    monkeypatch.setattr("sterna.cli.app", broken)
    assert run(["status"]) == EXIT_INTERNAL
    assert "surprise" in one_line_of(capsys.readouterr().err)
    assert "Traceback" in (home / "crash.log").read_text()


@pytest.mark.parametrize(
    ("failure", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full; free some space and try again"),
        (OSError(errno.ENOSPC, "No space", "/out/x"), "the disk is full at /out/x; free some space"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            "/x: Permission denied; name another place",
        ),
        (
            FileNotFoundError(errno.ENOENT, "No such file", "/proc/x"),
            "/proc/x: No such file; name another place",
        ),
    ],
)
def test_a_disk_that_refuses_what_somebody_named_is_no_bug(
    failure: OSError,
    line: str,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr("sterna.cli.app", refused)
    assert run(["status"]) == 5
    assert one_line_of(capsys.readouterr().err).startswith(f"error: {line}")
    assert not home.exists()


def test_a_failure_of_the_system_that_names_no_file_is_a_bug(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ConnectionResetError(errno.ECONNRESET, "reset")

    monkeypatch.setattr("sterna.cli.app", broken)
    assert run(["status"]) == EXIT_INTERNAL


def test_the_report_of_a_bug_lies_in_the_home_that_was_given(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("surprise")

    monkeypatch.setattr("sterna.cli.app", broken)
    assert run(["status", "--home", str(tmp_path / "other")]) == EXIT_INTERNAL
    assert (tmp_path / "other" / "crash.log").exists() and not (home / "crash.log").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["swarm", "create", "--data", "x", "--train-seconds", "inf"],
        ["swarm", "create", "--data", "x", "--seed", "99999999999999999999999"],
        ["swarm", "create", "--data", "x", "--threads", "100000"],
        ["chat", "--seed", "-1"],
        ["simulate", "--grid", "x", "--processes", "0"],
        ["simulate", "--peers", "8", "--byzantine", "0.1"],
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_happens(
    words: list[str], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words) == 2
    assert words[-2] in capsys.readouterr().err
    assert not home.exists()


def test_a_home_that_is_a_file_has_no_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert run(["status", "--home", str(tmp_path / "file")]) not in (0, EXIT_INTERNAL)


def test_a_line_of_the_log_says_why() -> None:
    record = logging.getLogger("sterna.x").makeRecord(
        "sterna.x", logging.WARNING, "", 0, "status.unwritten", (), None, extra={"why": "the disk is full"}
    )
    line = LogLines("%(levelname)s %(name)s %(message)s").format(record)
    assert line == "WARNING sterna.x status.unwritten why=the disk is full"


def test_an_interruption_while_the_command_is_loaded_is_no_traceback() -> None:
    program = """
import builtins, sys
plain = builtins.__import__
def interrupted(name, *rest, **more):
    if name == "sterna.cli":
        raise KeyboardInterrupt
    return plain(name, *rest, **more)
builtins.__import__ = interrupted
from sterna.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "")


def test_a_failure_is_one_line_whatever_its_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert fail("first\nsecond\n  third", 5) == 5
    assert re.fullmatch(r"error: first second third\n", capsys.readouterr().err)
