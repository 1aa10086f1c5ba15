"""Made-up peers: in an invite swarm none is merged, in an open one they fill few places and no seat."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sterna.errors import ConfigError
from sterna.simulate.attacks import CROWD
from sterna.simulate.crowd import acts_of, invitation_of, made_up_keys
from sterna.simulate.door import Door
from sterna.simulate.faults import Faults
from sterna.simulate.peer import key_of
from sterna.simulate.trial import Trial, charter_of, run_trial
from sterna_protocol.swarm.roll import Roll
from tests.support.admission import decided

INVITE = Trial(
    peers=12,
    rounds=6,
    seed=1,
    byzantine=0.25,
    attack=CROWD,
    admission="invite",
    faults=Faults(loss=0.2, duplicate=0.1, crash=0.2, partition=0.2),
)


@pytest.mark.parametrize("admission", ["invite", "open"])
@pytest.mark.parametrize("seed", [1, 2])
def test_no_invariant_breaks_where_attackers_make_up_peers(admission: str, seed: int) -> None:
    report = run_trial(replace(INVITE, admission=admission, seed=seed))
    assert report.violations == ()
    assert report.certified_rounds >= INVITE.rounds


@pytest.mark.parametrize("admission", ["invite", "open"])
def test_every_other_attack_is_held_at_the_door_too(admission: str) -> None:
    report = run_trial(replace(INVITE, admission=admission, attack="mixed"))
    assert report.violations == ()


def test_the_door_notices_what_the_protocol_must_not_let_through() -> None:
    charter = charter_of(INVITE)
    [made_up, *_] = made_up_keys(3, 1)
    [breach] = Door(charter).follow(decided(charter, 1, made_up))
    assert "whom nobody invited" in breach
    twice = tuple(invitation_of(charter, 9).admit(key, charter.swarm_id) for key in made_up_keys(3, 1)[:2])
    [breach] = Door(charter).follow(decided(charter, 1, changes=twice))
    assert "used up" in breach
    crowd = charter_of(replace(INVITE, admission="open"))
    [breach] = Door(crowd).follow(decided(crowd, 1, *(key_of(number) for number in range(100, 113))))
    assert "13 deltas of strangers, 12 are allowed" in breach


@pytest.mark.parametrize(("admission", "rule"), [("invite", "may_announce"), ("open", "is_full")])
def test_a_protocol_without_a_door_is_noticed(
    admission: str, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Roll, rule, lambda roll, peer: True)
    calm = replace(INVITE, admission=admission, seed=3, faults=Faults())
    assert any("round" in broken for broken in run_trial(calm).violations)


def test_everybody_who_is_meant_to_be_there_can_come_in() -> None:
    charter = charter_of(INVITE)
    roll = Roll.founding(charter)
    for number in range(8, 12):
        roll = roll.changed(acts_of(charter, number), 1)
    assert len(roll.listed) == 12


def test_a_crowd_needs_a_door() -> None:
    with pytest.raises(ConfigError, match="--admission invite or open"):
        replace(INVITE, admission="trust")
