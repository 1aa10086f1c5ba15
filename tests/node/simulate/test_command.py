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


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--grid x.toml --learning on", "--learning does nothing with --grid: write it into x.toml"),
        ("--grid x.toml --seeds 4", "--seeds does nothing with --grid"),
        ("--grid x.toml --ray-address a:1", "--ray-address does nothing without --engine ray"),
        ("--grid x.toml --engine ray --processes 2", "--processes does nothing with --engine ray"),
        ("--results x.jsonl", "--results does nothing for a single trial: it needs --grid FILE"),
        ("--processes 2", "--processes does nothing for a single trial"),
        ("--base nano", "--base does nothing where nobody learns: give --learning on too"),
        ("--sharing source --learning off", "--sharing does nothing where nobody learns"),
        ("--attack lie", "--attack does nothing where nobody attacks: give --byzantine SHARE too"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(words, line, capsys):
    assert run(["simulate", *words.split()]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {line}") and printed.count("\n") == 1


def test_the_command_of_a_trial_leaves_out_an_attack_of_nobody():
    assert "--attack" not in Trial(peers=4, rounds=1, seed=1, attack="lie").command()


def test_more_liars_than_a_committee_tolerates_are_told_what_is_not_promised(capsys):
    words = [*SMALL, "--byzantine", "0.9", "--attack", "silent"]
    run(words)
    shown = capsys.readouterr().out
    assert (
        "a committee tolerates fewer than a third of liars; seed 1 had a third or more from round 1 on"
        in shown
    )
    run([*words, "--json"])
    promises = json.loads(capsys.readouterr().out)["not_promised"]
    assert "one decision a round" in promises and all(promise in shown for promise in promises)


def test_as_few_liars_as_a_committee_tolerates_take_no_promise_away(capsys):
    words = ["simulate", "--peers", "8", "--rounds", "2", "--byzantine", "0.25", "--attack", "silent"]
    assert run(words) == 0
    assert "promised" not in capsys.readouterr().out
    assert run([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["not_promised"] == []


def test_a_picture_is_written(tmp_path):
    assert run([*SMALL, "--plot", str(tmp_path / "load.png")]) == 0
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")
