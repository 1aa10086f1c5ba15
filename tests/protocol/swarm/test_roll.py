"""The roll: whom the certified decisions let in, put out and give another name."""

from __future__ import annotations

from typing import Any

import pytest

from sterna_protocol.errors import BadSignature, Untimely
from sterna_protocol.swarm.roll import FORGOTTEN_AFTER, OPEN, Roll
from sterna_protocol.wire import signing
from sterna_protocol.wire.acts import Act
from tests.support.admission import admission, decided, departure, revocation, rotation
from tests.support.charters import key, small_charter

FOUNDERS = tuple(sorted((key(1), key(2)), key=lambda founder: founder.peer))
A, B, C, D, E = (key(number) for number in range(10, 15))


def invite_swarm(**changes: Any) -> Roll:
    peers = tuple(founder.peer for founder in FOUNDERS)
    return Roll.founding(small_charter(founders=peers, admission="invite", **changes))


def open_swarm(**changes: Any) -> Roll:
    return Roll.founding(small_charter(**({"admission": "open", "aged_rounds": 3} | changes)))


def let_in(roll: Roll, inviter: signing.SigningKey, *joiners: signing.SigningKey, **terms: Any) -> Roll:
    for joiner in joiners:
        roll = roll.changed([admission(roll.charter, inviter, joiner, **terms)], 1)
    return roll


def refuses(roll: Roll, act: Act, why: str, round_: int = 1, excluded: tuple[bytes, ...] = ()) -> None:
    with pytest.raises(Untimely, match=why):
        roll.changed([act], round_, excluded)


def grown() -> Roll:
    """Founder -> A -> B -> C, and founder -> D."""
    roll = let_in(invite_swarm(), FOUNDERS[0], A, D, may_invite=5)
    roll = let_in(roll, A, B, may_invite=5)
    return let_in(roll, B, C)


def test_a_swarm_begins_with_its_founders_alone() -> None:
    roll = invite_swarm()
    assert all(roll.may_announce(founder.peer) and roll.is_full(founder.peer) for founder in FOUNDERS)
    assert not roll.may_announce(A.peer)


def test_an_invite_lets_its_holder_in() -> None:
    roll = let_in(invite_swarm(), FOUNDERS[0], A)
    assert roll.may_announce(A.peer)
    assert roll.listed[A.peer].inviter == FOUNDERS[0].peer
    assert roll.listed[A.peer].since == 1


def test_a_branch_is_a_direct_invitee_of_a_founder_with_everybody_below() -> None:
    roll = grown()
    assert [roll.branch(peer.peer) for peer in (A, B, C)] == [A.peer] * 3
    assert roll.branch(D.peer) == D.peer
    assert roll.branch(FOUNDERS[0].peer) == FOUNDERS[0].peer


def test_a_chain_of_invites_ends_at_the_charters_depth() -> None:
    roll = let_in(invite_swarm(max_depth=1), FOUNDERS[0], A, may_invite=5)
    refuses(roll, admission(roll.charter, A, B), "further than the charter allows")
    refuses(grown(), admission(grown().charter, C, E), "further than the charter allows")


def test_only_who_is_in_the_swarm_invites() -> None:
    roll = invite_swarm()
    refuses(roll, admission(roll.charter, A, B), "not in the swarm")


def test_an_invite_is_good_up_to_its_last_round() -> None:
    roll = invite_swarm()
    act = admission(roll.charter, FOUNDERS[0], A, last_round=7)
    roll.changed([act], 7)
    refuses(roll, act, "up to round 7", round_=8)


def test_an_invite_lets_in_as_many_as_it_says() -> None:
    seed = b"s" * 32
    roll = let_in(invite_swarm(), FOUNDERS[0], A, B, uses=2, seed=seed)
    refuses(roll, admission(roll.charter, FOUNDERS[0], C, uses=2, seed=seed), "used up")


def test_a_peer_invites_no_more_than_it_may() -> None:
    roll = let_in(let_in(invite_swarm(), FOUNDERS[0], A, may_invite=1), A, B)
    refuses(roll, admission(roll.charter, A, C), "used up")


def test_a_peer_allows_no_more_than_the_charter() -> None:
    roll = invite_swarm(invite_quota=3)
    refuses(roll, admission(roll.charter, FOUNDERS[0], A, may_invite=4), "further than the charter")


def test_nobody_joins_twice() -> None:
    roll = let_in(invite_swarm(), FOUNDERS[0], A)
    refuses(roll, admission(roll.charter, FOUNDERS[1], A), "is in the swarm")


def test_who_is_excluded_is_not_let_in_and_lets_nobody_in() -> None:
    roll = let_in(invite_swarm(), FOUNDERS[0], A, may_invite=5)
    act = admission(roll.charter, A, B)
    refuses(roll, act, "not in the swarm", excluded=(A.peer,))
    refuses(roll, act, "barred", excluded=(B.peer,))


@pytest.mark.parametrize("revoker", [FOUNDERS[0], FOUNDERS[1], A, B])
def test_a_revocation_cuts_the_sub_tree_for_good(revoker: signing.SigningKey) -> None:
    roll = grown()
    target = C if revoker is B else B
    cut = roll.changed([revocation(roll.charter, revoker, target)], 2)
    assert not cut.may_announce(C.peer)
    assert cut.may_announce(A.peer)
    refuses(cut, admission(roll.charter, FOUNDERS[0], C), "barred", round_=3)


@pytest.mark.parametrize(("revoker", "target"), [(D, B), (C, B), (B, A), (A, A), (A, FOUNDERS[0]), (E, A)])
def test_nobody_revokes_but_founders_and_those_above(
    revoker: signing.SigningKey, target: signing.SigningKey
) -> None:
    roll = grown()
    refuses(roll, revocation(roll.charter, revoker, target), "is not above|nobody who can be revoked")


def test_founders_do_not_revoke_each_other() -> None:
    roll = invite_swarm()
    refuses(roll, revocation(roll.charter, *FOUNDERS), "nobody who can be revoked")


def test_who_leaves_may_return_and_an_old_departure_does_not_put_it_out_again() -> None:
    roll = grown()
    left = departure(roll.charter, A, 1)
    gone = roll.changed([left], 2)
    assert not gone.may_announce(A.peer)
    assert gone.may_announce(B.peer)
    back = gone.changed([admission(roll.charter, FOUNDERS[1], A)], 3)
    assert back.may_announce(A.peer)
    refuses(back, left, "since round 1", round_=4)


def test_a_rotated_key_takes_the_old_ones_place_everywhere() -> None:
    roll = grown()
    turned = roll.changed([rotation(roll.charter, A, E)], 2)
    assert not turned.may_announce(A.peer)
    assert turned.current(A.peer) == E.peer
    assert turned.listed[E.peer].since == 1
    assert turned.above(C.peer) == [B.peer, E.peer, FOUNDERS[0].peer]
    assert {turned.branch(peer.peer) for peer in (E, B, C)} == {E.peer}
    refuses(turned, admission(roll.charter, FOUNDERS[0], A), "barred", round_=3)


def test_a_founder_stays_one_under_a_new_key() -> None:
    roll = grown()
    turned = roll.changed([rotation(roll.charter, FOUNDERS[0], E)], 2)
    assert E.peer in turned.founders
    turned.changed([revocation(roll.charter, E, A)], 3)


@pytest.mark.parametrize("new", [B, D, FOUNDERS[1]])
def test_nobody_rotates_into_a_key_that_is_in_use(new: signing.SigningKey) -> None:
    roll = grown()
    refuses(roll, rotation(roll.charter, A, new), "no new key")


def test_an_excluded_key_cannot_be_rotated() -> None:
    roll = grown()
    refuses(roll, rotation(roll.charter, A, E), "no key that can be rotated", excluded=(A.peer,))


def test_signatures_are_checked_where_asked() -> None:
    roll = invite_swarm()
    act = admission(roll.charter, FOUNDERS[0], A)
    forged = act.model_copy(update={"signatures": (act.signatures[0], bytes(64))})
    with pytest.raises(BadSignature):
        roll.changed([forged], 1, (), signing.verify)


def test_strangers_age_by_merged_rounds() -> None:
    roll = open_swarm()
    assert roll.may_announce(A.peer)
    for round_ in range(1, 4):
        assert not roll.is_full(A.peer)
        assert roll.branch(A.peer) == OPEN
        roll = roll.after(decided(roll.charter, round_, A))
    assert roll.is_full(A.peer)
    assert roll.branch(A.peer) == A.peer


def test_a_stranger_invites_nobody_however_old() -> None:
    roll = open_swarm()
    for round_ in range(1, 9):
        roll = roll.after(decided(roll.charter, round_, A))
    refuses(roll, admission(roll.charter, A, B), "not in the swarm", round_=9)


def test_an_invited_peer_of_an_open_swarm_counts_in_full_at_once() -> None:
    roll = open_swarm()
    roll = roll.after(decided(roll.charter, 1, A))
    act = admission(roll.charter, key(1), A)
    assert roll.changed([act], 2).is_full(A.peer)


def test_a_stranger_that_was_cut_off_stays_out() -> None:
    roll = open_swarm()
    roll = roll.after(decided(roll.charter, 1, A))
    assert not roll.changed([revocation(roll.charter, key(1), A)], 2).may_announce(A.peer)


def test_strangers_that_stay_away_are_forgotten() -> None:
    roll = open_swarm()
    roll = roll.after(decided(roll.charter, 1, A))
    roll = roll.after(decided(roll.charter, FORGOTTEN_AFTER, B))
    assert A.peer in roll.listed
    roll = roll.after(decided(roll.charter, FORGOTTEN_AFTER + 1, B))
    assert A.peer not in roll.listed


def test_in_a_swarm_that_trusts_whoever_comes_everybody_is_full_at_once() -> None:
    roll = open_swarm(aged_rounds=0)
    assert roll.is_full(A.peer)
    assert roll.branch(A.peer) == A.peer
