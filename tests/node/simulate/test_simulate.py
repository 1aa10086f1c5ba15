"""Whole swarms in virtual time: replay, faults of every kind, liars, and what the invariants notice."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import pytest

from sterna.errors import ConfigError
from sterna.simulate.attacks import DRAWN
from sterna.simulate.faults import Faults
from sterna.simulate.report import Report
from sterna.simulate.trial import Trial, run_trial
from tests.node.simulate.seeds import BAD, row, trial

SEEDS = 200
SEEDS_AT_ONCE = 10
ROUNDS = 5
"""Ten seeds take eight seconds of an idle core; `python -m tests.node.simulate.seeds` runs more."""


def require_good(report: Report) -> None:
    assert report.is_good, (report.command, report.violations)
    assert report.forks == 0


@pytest.fixture(scope="module")
def cores() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        yield pool


@pytest.mark.slow
@pytest.mark.timeout(600)  # for machines that do much else
@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS_AT_ONCE))
def test_thirty_nodes_hold_with_faults_and_liars_of_every_kind(first, cores):
    for found in cores.map(partial(row, rounds=ROUNDS), range(first, first + SEEDS_AT_ONCE)):
        assert not found["violations"], (trial(found["seed"], ROUNDS).command(), found["violations"])


@pytest.mark.parametrize(
    ("why", "broken"),
    [
        (
            "votes far ahead made nodes drop the proof against who sent them",
            Trial(peers=8, rounds=4, seed=3, byzantine=0.25, attack="flood", rule="mean", trim=20),
        ),
        *(
            (
                "a proof was forgotten while the one it is about had no seat for a round",
                Trial(peers=8, rounds=4, seed=seed, byzantine=0.25, rule="mean", trim=20, faults=BAD),
            )
            for seed in (86, 89, 133)
        ),
        (
            "strangers filled the round, and who restarted had no room for what the others were locked on",
            trial(619),
        ),
    ],
)
def test_what_once_broke_holds(why, broken):
    require_good(run_trial(broken))


@pytest.mark.parametrize("attack", DRAWN)
def test_two_liars_of_eight_neither_stop_nor_fork_a_swarm(attack):
    require_good(run_trial(Trial(peers=8, rounds=4, seed=3, byzantine=0.25, attack=attack)))


@pytest.mark.parametrize("fault", ["loss", "duplicate", "partition", "crash", "skew"])
def test_rounds_close_in_spite_of_each_fault_alone(fault):
    report = run_trial(Trial(peers=6, rounds=5, seed=5, faults=Faults(**{fault: 0.3})))
    require_good(report)
    assert report.certified_rounds >= 5


def test_gossip_is_relayed_where_nobody_knows_everybody():
    require_good(run_trial(Trial(peers=60, rounds=2, seed=1, trainers=6, faults=Faults(loss=0.1))))


def test_other_seeds_are_other_runs():
    digests = [run_trial(Trial(peers=5, rounds=2, seed=seed)).trace_digest for seed in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]


def test_a_seed_is_the_same_run_under_every_hash_seed():
    script = (
        "from sterna.simulate.trial import *\n"
        "print(run_trial(Trial(peers=10, rounds=4, seed=7, byzantine=0.2,"
        " faults=Faults(loss=0.2, duplicate=0.1, partition=0.5, crash=0.2, skew=0.1))).trace_digest)"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("0", "1", "4711")
    }
    assert len(digests) == 1


def test_a_swarm_of_liars_is_noticed():
    report = run_trial(Trial(peers=6, rounds=3, seed=1, byzantine=0.7, attack="silent"))
    assert report.beyond_tolerance == 1
    assert any("no progress" in violation for violation in report.violations)


def test_liars_who_can_stop_a_round_do_not_make_the_others_vote_as_fast_as_messages_travel():
    """Thirty nodes with every fault and seed 614: of a committee of six two lied about every merge."""
    report = run_trial(Trial(peers=6, rounds=3, seed=1, byzantine=0.34, attack="lie", rule="mean", trim=20))
    assert report.beyond_tolerance == 1
    assert report.virtual_seconds > 300
    assert report.messages_per_node < 20 * report.virtual_seconds


@pytest.mark.parametrize(
    "changes",
    [{"peers": 3}, {"rounds": 0}, {"seed": -1}, {"attack": "rude"}, {"rule": "best"}, {"byzantine": 1.0}],
)
def test_a_trial_says_what_to_give_instead_of_a_bad_value(changes):
    settings = {"peers": 8, "rounds": 2, "seed": 1} | changes
    with pytest.raises(ConfigError, match=f"--{next(iter(changes))}"):
        Trial(**settings)


@pytest.mark.parametrize("fault", ["loss", "duplicate", "partition", "crash", "skew", "latency"])
def test_faults_out_of_range_are_refused(fault):
    with pytest.raises(ConfigError, match=f"--{fault}"):
        Faults(**{fault: -0.1})
