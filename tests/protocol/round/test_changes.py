"""The acts that wait for a decision: the same on every node, whatever the order they came in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna_protocol.errors import BadSignature, Untimely
from sterna_protocol.round.changes import Changes
from sterna_protocol.swarm.roll import Roll
from sterna_protocol.wire import signing
from sterna_protocol.wire.acts import Act
from sterna_protocol.wire.limits import MAX_CHANGES
from tests.support.admission import admission, revocation, rotation
from tests.support.charters import key, small_charter

CHARTER = small_charter(admission="invite")
FOUNDER = key(1)
ROLL = Roll.founding(CHARTER)
SEED = b"s" * 32
USED_TOO_OFTEN = [admission(CHARTER, FOUNDER, key(n), uses=2, seed=SEED) for n in range(10, 16)]


def waiting(*acts: Act, roll: Roll = ROLL) -> Changes:
    changes = Changes(roll, 1, ())
    for act in acts:
        try:
            changes.admit(act, signing.verify)
        except Untimely:
            continue
        changes.add(act)
    return changes


@given(st.permutations(USED_TOO_OFTEN))
def test_of_an_invite_used_too_often_every_node_keeps_the_same(acts: list[Act]) -> None:
    lowest = sorted(USED_TOO_OFTEN, key=lambda act: act.id)[:2]
    assert waiting(*acts).held() == lowest


def test_what_is_displaced_is_said_and_lets_nobody_in_any_more() -> None:
    first, second, third = sorted(USED_TOO_OFTEN, key=lambda act: act.id)[:3]
    changes = waiting(second, third)
    assert changes.add(first) == [third]
    assert changes.lets_in(first.content.subject)
    assert not changes.lets_in(third.content.subject)


def test_the_same_act_again_is_untimely() -> None:
    act = USED_TOO_OFTEN[0]
    with pytest.raises(Untimely, match="same peer"):
        waiting(act).admit(act, signing.verify)


def test_an_unsigned_act_is_refused() -> None:
    act = USED_TOO_OFTEN[0].model_copy(update={"signatures": (bytes(64), bytes(64))})
    with pytest.raises(BadSignature):
        Changes(ROLL, 1, ()).admit(act, signing.verify)


def test_a_proposer_takes_no_more_than_fit_and_first_those_whose_deltas_wait() -> None:
    acts = [admission(CHARTER, FOUNDER, key(n)) for n in range(20, 30)]
    wanted = {key(n).peer for n in (22, 27)}
    chosen = waiting(*acts).choose((), wanted)
    assert len(chosen) == MAX_CHANGES
    assert {act.content.subject for act in chosen[:2]} == wanted
    ROLL.changed(chosen, 1, (), signing.verify)


def test_who_is_cut_off_brings_nobody_in_by_the_same_decision() -> None:
    roll = ROLL.changed([admission(CHARTER, FOUNDER, key(2), may_invite=3)], 1)
    invited = admission(CHARTER, key(2), key(3))
    cut = revocation(CHARTER, FOUNDER, key(2))
    assert waiting(invited, cut, roll=roll).choose((), ()) == (cut,)


def test_a_quota_holds_over_all_invites_of_a_peer() -> None:
    roll = ROLL.changed([admission(CHARTER, FOUNDER, key(2), may_invite=1)], 1)
    acts = [admission(CHARTER, key(2), key(n)) for n in (3, 4)]
    assert len(waiting(*acts, roll=roll).choose((), ())) == 1


def test_who_is_proven_two_faced_gets_no_new_key() -> None:
    act = rotation(CHARTER, FOUNDER, key(9))
    assert waiting(act).choose((), ()) == (act,)
    assert waiting(act).choose((FOUNDER.peer,), ()) == ()
