"""Swarms that really learn: the rounds are the protocol's, the deltas are trained, some of them poisoned."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sterna.app.simulation import run_simulation
from sterna.cli import run
from sterna.errors import ConfigError
from sterna.simulate.classroom import Classroom, entry_of, taught_in_one_room
from sterna.simulate.learning import GENESIS_ADAPTER
from sterna.simulate.trial import Trial, cast, charter_of, run_trial
from sterna.train.base import builtin_bases, open_base
from sterna.train.crowd import Crowd
from sterna_protocol.swarm.charter import MAX_FOUNDERS
from tests.node.train.tiny import write_text

PEERS, ROUNDS = 6, 2


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    return [write_text(folder, documents=60, name=f"{name}.jsonl") for name in ("one", "two")]


@pytest.fixture(scope="module")
def crowd(texts):
    return Crowd(open_base(builtin_bases()["tiny"]), texts, peers=PEERS, sharing="dirichlet", seed=1)


def trial(**changes) -> Trial:
    return Trial(**({"peers": PEERS, "rounds": ROUNDS, "seed": 1, "base": "tiny"} | changes))


def test_a_swarm_learns_and_replays_exactly(crowd):
    first, second = (run_trial(trial(), crowd) for _ in range(2))
    assert first.is_good and first.certified_rounds == ROUNDS
    assert first.trace_digest == second.trace_digest
    assert first.learned == second.learned
    assert first.learned.loss_final < first.learned.loss_before - 0.1


def test_a_swarm_where_every_delta_arrives_merges_what_one_room_merges(crowd):
    report = run_trial(trial(rule="median"), crowd, every_round=True, loss_clean=0.0)
    classroom = Classroom(crowd, charter_of(trial(rule="median"), crowd), peers=PEERS, poisons={})
    adapters = taught_in_one_room(classroom, PEERS, ROUNDS)
    assert report.learned.losses == tuple(classroom.loss(adapter) for adapter in adapters)


def test_strangers_of_an_open_swarm_weigh_as_one_branch(texts):
    everybody = trial(peers=MAX_FOUNDERS + 2, rounds=1)
    more = Crowd(open_base(builtin_bases()["tiny"]), texts, peers=everybody.peers, sharing="source", seed=1)
    doors = ("trust", "open")
    reports = [run_trial(replace(everybody, admission=door), more, loss_clean=0.0) for door in doors]
    assert all(report.is_good for report in reports)
    losses = [report.learned.loss_final for report in reports]
    assert losses[0] != losses[1] and max(losses) < reports[0].learned.loss_before - 0.05


def test_who_sends_the_opposite_undoes_what_the_mean_learns_and_not_what_the_filter_does(crowd):
    losses = {}
    for rule in ("mean", "clip+filter"):
        poisoned = trial(byzantine=0.34, attack="sign-flip", rule=rule, trim=34)
        report = run_trial(poisoned, crowd, loss_clean=0.0)
        assert report.is_good and report.byzantine == 2
        losses[rule] = report.learned.loss_final
    assert losses["mean"] > report.learned.loss_before
    assert losses["clip+filter"] < report.learned.loss_before - 0.1


@pytest.mark.parametrize("attack", ["label-flip", "alie-adaptive", "equivocate-proposal"])
def test_rounds_close_and_are_the_same_again_under_attack(attack, crowd):
    attacked = trial(byzantine=0.34, attack=attack, rounds=1)
    reports = [run_trial(attacked, crowd, loss_clean=0.0) for _ in range(2)]
    assert all(report.is_good for report in reports)
    assert reports[0].trace_digest == reports[1].trace_digest


def test_poisoners_train_keep_the_protocol_and_are_as_many_as_told():
    casting = cast(Trial(peers=30, trainers=20, rounds=1, seed=3, base="tiny", byzantine=0.3, attack="alie"))
    assert len(casting.poisons) == 6 and max(casting.poisons) < 20
    assert sum(number < 8 for number in casting.poisons) <= 2
    assert not any(attack.is_active or attack.two_faced for attack in casting.attacks.values())


def test_a_slate_with_a_delta_that_nobody_made_has_a_digest_but_no_adapter(crowd):
    classroom = Classroom(crowd, charter_of(trial(), crowd), peers=PEERS, poisons={})
    made_up = classroom.merged(1, GENESIS_ADAPTER, [entry_of(0, 1)], ())
    assert classroom.merged(2, made_up, (), ()) == made_up
    assert classroom.trained(0, 2, made_up) == classroom.trained(0, 2, made_up)
    with pytest.raises(KeyError):
        classroom.loss(made_up)


@pytest.mark.parametrize(
    "changes",
    [{"attack": "alie", "base": None}, {"trim": 46}, {"sharing": "fairly"}],
    ids=["attack", "trim", "sharing"],
)
def test_a_trial_says_what_to_give_instead(changes, request):
    with pytest.raises(ConfigError, match=f"--{request.node.callspec.id}"):
        trial(**changes)


def test_a_base_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match="no base 'huge'"):
        run_simulation(trial(base="huge"))


@pytest.mark.slow
def test_the_command_gives_losses_and_a_picture(tmp_path, capsys):
    picture = tmp_path / "run.png"
    words = ["--peers", "4", "--rounds", "1", "--learning", "on", "--sharing", "source", "--json"]
    assert run(["simulate", *words, "--plot", str(picture)]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["loss_final"] == figures["losses"][-1] < figures["loss_before"]
    assert figures["loss_clean"] == pytest.approx(figures["loss_final"], abs=0.05)
    assert figures["rule"] == "clip+filter" and figures["attack"] is None
    assert picture.stat().st_size > 1000
