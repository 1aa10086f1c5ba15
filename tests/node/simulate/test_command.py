"""`sterna simulate` as people and programs call it."""

from __future__ import annotations

import json

import pytest

from sterna.cli import run
from sterna.simulate.trial import Trial

SMALL = ["simulate", "--peers", "4", "--rounds", "2"]


def test_json_holds_what_programs_need(capsys):
    assert run([*SMALL, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["certified_rounds"] == 2
    assert report["forks"] == 0
    assert report["violations"] == []
    for field in ("trace_digest", "events", "seconds", "messages_per_node", "bytes_per_node"):
        assert report[field]


def test_several_seeds_are_summed_up(capsys):
    assert run([*SMALL, "--seeds", "2", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["trace_digest"]) == {"1", "2"}


def test_a_broken_run_ends_with_1_and_the_command_that_repeats_it(capsys):
    assert run([*SMALL, "--byzantine", "0.8", "--attack", "silent"]) == 1
    assert "again: sterna simulate --peers 4 --rounds 2 --seed 1 --byzantine 0.8" in capsys.readouterr().out


def test_the_command_of_a_trial_is_that_trial(capsys):
    command = Trial(peers=4, rounds=2, seed=9, trainers=3, rule="median").command()
    assert run([*command.split()[1:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["command"] == command


@pytest.mark.parametrize("words", [["--peers", "1"], ["--loss", "2"], ["--attack", "x"], ["--seeds", "0"]])
def test_a_bad_value_is_one_line_and_exit_2(words, capsys):
    assert run(["simulate", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_picture_is_written(tmp_path):
    assert run([*SMALL, "--plot", str(tmp_path / "load.png")]) == 0
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")
