"""Grids of trials: which trials a file stands for, resuming, and where they run."""

from __future__ import annotations

import json

import pytest

from sterna.app.engines import run_in_processes, run_line, run_on_ray
from sterna.cli import run
from sterna.errors import ConfigError
from sterna.simulate.grid import read_grid, read_results, run_grid, summarise, trial_of

GRID = """
[trial]
peers = 4
rounds = 2
byzantine = 0.25

[grid]
attack = ["silent", "lie"]
seed = [1, 2]
"""


@pytest.fixture
def grid(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(GRID)
    return path


def in_this_process(lines):
    return map(run_line, lines)


def test_every_combination_is_a_trial(grid):
    assert [(options["attack"], options["seed"]) for options in read_grid(grid)] == [
        ("silent", 1),
        ("silent", 2),
        ("lie", 1),
        ("lie", 2),
    ]
    assert all(trial_of(options).peers == 4 for options in read_grid(grid))


def test_options_of_faults_and_of_the_swarm_stand_side_by_side():
    trial = trial_of({"peers": 5, "loss": 0.1, "skew": 0})
    assert (trial.peers, trial.rounds, trial.faults.loss) == (5, 10, 0.1)


def test_peers_that_learn_have_a_base():
    assert trial_of({"base": "nano"}).base is None
    assert trial_of({"learning": "on"}).base == "tiny"
    assert trial_of({"learning": "on", "base": "nano", "attack": "alie"}).base == "nano"


@pytest.mark.slow
def test_learning_is_one_of_the_things_that_vary(tmp_path):
    both = [{"peers": 4, "rounds": 1, "learning": learning} for learning in ("off", "on")]
    summary = summarise(both, list(run_grid(both, tmp_path / "results.jsonl", in_this_process)))
    assert [(row["learning"], "loss_final" in row) for row in summary] == [("off", False), ("on", True)]


def test_what_was_run_is_not_run_again(grid, tmp_path):
    trials, results = read_grid(grid), tmp_path / "results.jsonl"
    first = [row["options"] for row in run_grid(trials[:1], results, in_this_process)]
    # A crash cut the last line off.
    with results.open("a") as file:
        file.write('{"options": {"attack"')
    rest = [row["options"] for row in run_grid(trials, results, in_this_process)]
    assert first == trials[:1]
    assert rest == trials[1:]
    assert [row["options"] for row in read_results(results)] == trials


def test_seeds_are_summed_up_and_what_varies_is_named(grid, tmp_path):
    trials = read_grid(grid)
    summary = summarise(trials, list(run_grid(trials, tmp_path / "results.jsonl", in_this_process)))
    assert [(row["attack"], row["seeds"], row["broken"]) for row in summary] == [
        ("silent", 2, 0),
        ("lie", 2, 0),
    ]
    assert all(row["certified_rounds"] == 2 and row["bytes_per_node_and_round"] > 0 for row in summary)
    assert "peers" not in summary[0]


@pytest.mark.slow
def test_processes_give_what_this_process_gives(grid):
    lines = [json.dumps(options) for options in read_grid(grid)]
    digests = [
        {trace_digest(line) for line in engine}
        for engine in (in_this_process(lines), run_in_processes(lines, 2))
    ]
    assert digests[0] == digests[1]
    assert len(digests[0]) == 4


def trace_digest(line):
    return json.loads(line)["report"]["trace_digest"]


@pytest.mark.slow
def test_a_ray_cluster_of_two_nodes_gives_what_this_process_gives(grid, monkeypatch):
    pytest.importorskip("ray", reason="Ray is an extra: pip install 'sterna[ray]'")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    lines = [json.dumps(options) for options in read_grid(grid)]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        found = {trace_digest(line) for line in run_on_ray(lines, cluster.address)}
    finally:
        cluster.shutdown()
    assert found == {trace_digest(line) for line in in_this_process(lines)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[trial", "cannot be read"),
        ("[trials]\npeers = 4", r"unknown table \[trials\]"),
        ("[grid]\nseed = 3", "must be a list"),
        ("[grid]\nseed = []", "must be a list"),
        ('[trial]\nlearning = "perhaps"', "give on or off"),
        ("trial = 3", r"trial must be a table"),
        ("[[grid]]\nseed = [1]", r"grid must be a table"),
        ("[trial]\npears = 4", r"grid\.toml: \[trial\] pears is no option: did you mean peers\?"),
        ("[grid]\nzzz = [4]", r"\[grid\] zzz is no option: choose of admission, attack, base"),
        ("[trial]\npeers = 3", r"grid\.toml: --peers 3 is out of range"),
        ('[trial]\npeers = "four"', r"grid\.toml: \[trial\] peers is 'four': give a whole number"),
        ("[trial]\npeers = 4.5", "peers is 4.5: give a whole number"),
        ("[grid]\nseed = [1, true]", r"\[grid\] seed is True: give a whole number"),
        ('[grid]\nloss = ["much"]', r"\[grid\] loss is 'much': give a number"),
        ("[trial]\nrule = 1", r"\[trial\] rule is 1: give a word in quotes"),
        ('[trial]\nbase = "nano"', "nobody learns"),
        ('[grid]\nattack = ["lie", "silent"]', "nobody attacks"),
        ("[grid]\nseed = [" + "1," * 400 + "]\nrounds = [" + "2," * 400 + "]", "160000 trials"),
    ],
)
def test_a_grid_says_what_is_wrong_with_it(text, message, tmp_path):
    (tmp_path / "grid.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_grid(tmp_path / "grid.toml")


def test_results_of_something_else_are_left_alone(grid, tmp_path):
    results = tmp_path / "results.jsonl"
    results.write_text('{"other": 1}\n')
    with pytest.raises(ConfigError, match="move the file away"):
        list(run_grid(read_grid(grid), results, in_this_process))
    assert results.read_text() == '{"other": 1}\n'


@pytest.mark.slow
def test_the_command_runs_a_grid_and_ends_with_a_table(grid, capsys):
    assert run(["simulate", "--grid", str(grid), "--processes", "1", "--json"]) == 0
    assert [row["attack"] for row in json.loads(capsys.readouterr().out)] == ["silent", "lie"]
    assert len(grid.with_suffix(".jsonl").read_text().splitlines()) == 4
    assert run(["simulate", "--grid", str(grid)]) == 0
    assert "silent" in capsys.readouterr().out


@pytest.mark.slow
def test_a_grid_says_what_too_many_liars_leave_unpromised(grid, capsys):
    grid.write_text("[grid]\npeers = [4]\nrounds = [1]\nbyzantine = [0.9]\n")
    assert run(["simulate", "--grid", str(grid), "--processes", "1"]) == 0
    assert "Not promised there: that rounds close; one decision a round" in capsys.readouterr().out


def test_an_unknown_engine_is_one_line_and_exit_2(grid, capsys):
    assert run(["simulate", "--grid", str(grid), "--engine", "steam"]) == 2
    assert "--engine steam is unknown" in capsys.readouterr().err
