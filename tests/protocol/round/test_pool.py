"""What the messages of a round add up to, whatever the order they came in, and within which bounds."""

from __future__ import annotations

import random

import pytest

from sterna_protocol.round.consensus import Verdict
from sterna_protocol.round.evidence import Held, hold, make_evidence
from sterna_protocol.round.pool import KEPT_ATTEMPTS, MAX_STRANGERS, Pool
from sterna_protocol.round.slate import choose_entries, is_seen
from sterna_protocol.swarm.committee import quorum
from sterna_protocol.swarm.roll import Roll
from sterna_protocol.wire.limits import MAX_EXCLUDED
from sterna_protocol.wire.messages import Announcement, Attestation, Decision, Kind, Prevote, sign
from tests.support.virtual_peer import FIGURES, GENESIS_ADAPTER, key_of, virtual_charter

FOUNDERS = tuple(sorted(key_of(number).peer for number in range(4)))
CHARTER = virtual_charter(FOUNDERS, min_deltas=2, max_deltas=3)
QUORUM = quorum(CHARTER, 4)
ROLL = Roll.founding(CHARTER)


def held(number: int, body: object, attempt: int = 0) -> Held:
    return hold(sign(key_of(number), swarm=CHARTER.swarm_id, round_=1, attempt=attempt, body=body))  # type: ignore[arg-type]


def announced(number: int, face: int = 0) -> Held:
    return held(
        number,
        Announcement(
            delta=bytes([number, face]) * 16,
            trained_round=1,
            base_adapter=GENESIS_ADAPTER,
            figures=FIGURES,
        ),
    )


def attested(number: int, *names: bytes) -> Held:
    return held(number, Attestation(accepted=tuple(sorted(names))))


def pool_of(*messages: Held) -> Pool:
    pool = Pool(FOUNDERS)
    for message in messages:
        pool.add(message, set())
    return pool


def decision(*announcements: Held) -> Decision:
    """Of members 0, 1 and 2 about ``announcements``."""
    entries = choose_entries(
        ROLL,
        pool_of(*announcements, *(attested(n, *(a.id for a in announcements)) for n in range(3))),
        QUORUM,
    )
    return Decision(
        round_=1,
        previous=CHARTER.swarm_id,
        entries=entries or (),
        attesters=tuple(sorted(key_of(number).peer for number in range(3))),
        adapter=GENESIS_ADAPTER,
    )


def test_the_slate_does_not_depend_on_the_order_of_arrival():
    deltas = sorted((announced(number) for number in range(6)), key=lambda delta: delta.id)
    partly = [attested(n, *(delta.id for delta in deltas if delta is not deltas[n])) for n in range(4)]
    messages = [*deltas, *partly]
    slates = set()
    for seed in range(20):
        random.Random(seed).shuffle(messages)
        slates.add(choose_entries(ROLL, pool_of(*messages), QUORUM))
    assert len(slates) == 1
    [slate] = slates
    assert slate is not None
    chosen = {entry.announcement for entry in slate}
    assert chosen == {deltas[4].id, deltas[5].id, deltas[0].id}


def test_better_supported_deltas_come_first():
    deltas = sorted((announced(number) for number in range(5)), key=lambda delta: delta.id)
    last = deltas[-1]
    messages = [attested(n, *(delta.id for delta in deltas)) for n in range(3)]
    pool = pool_of(*deltas, *messages, attested(3, last.id))
    slate = choose_entries(ROLL, pool, QUORUM)
    assert slate is not None and last.id in {entry.announcement for entry in slate}


def test_a_delta_one_attestation_short_is_not_in_the_slate():
    deltas = [announced(number) for number in range(3)]
    most = [attested(n, *(delta.id for delta in deltas[:2])) for n in range(2)]
    pool = pool_of(*deltas, *most, attested(2, *(delta.id for delta in deltas)))
    slate = choose_entries(ROLL, pool, QUORUM)
    assert slate is not None
    assert {entry.announcement for entry in slate} == {delta.id for delta in deltas[:2]}


def test_with_too_few_deltas_the_slate_is_void():
    delta = announced(0)
    assert choose_entries(ROLL, pool_of(delta, *(attested(n, delta.id) for n in range(3))), QUORUM) == ()


def test_with_too_few_announcements_at_hand_there_is_no_slate_and_no_void():
    deltas = [announced(number) for number in range(2)]
    pool = pool_of(deltas[0], *(attested(n, *(delta.id for delta in deltas)) for n in range(3)))
    assert choose_entries(ROLL, pool, QUORUM) is None


def test_void_is_refused_for_good_once_enough_deltas_have_a_quorum():
    deltas = [announced(number) for number in range(2)]
    few = pool_of(*deltas, *(attested(n) for n in range(3)))
    assert is_seen(ROLL, few, QUORUM, decision()) is Verdict.YES
    many = pool_of(*deltas, *(attested(n, *(delta.id for delta in deltas)) for n in range(3)))
    assert is_seen(ROLL, many, QUORUM, decision()) is Verdict.NO


def test_a_slate_waits_for_attestations_that_are_not_seen_yet():
    deltas = [announced(number) for number in range(2)]
    names = [delta.id for delta in deltas]
    proposal = decision(*deltas)
    pool = pool_of(*deltas, attested(0, *names), attested(1, *names))
    assert is_seen(ROLL, pool, QUORUM, proposal) is Verdict.WAIT
    pool.add(attested(2, *names), set())
    assert is_seen(ROLL, pool, QUORUM, proposal) is Verdict.YES


@pytest.mark.parametrize("face", [(), ("first",)])
def test_a_two_faced_attester_lets_both_void_and_slate_pass(face):
    """Whichever of its attestations others saw, they can follow the proposer."""
    deltas = [announced(number) for number in range(2)]
    names = [delta.id for delta in deltas]
    shown = attested(3, *(names if face else []))
    pool = pool_of(*deltas, attested(0, *names), attested(1, *names), attested(2), shown)
    pool.add(attested(3, names[0]), set())
    slate = choose_entries(ROLL, pool, QUORUM)
    assert slate is not None and len(slate) == 2
    assert is_seen(ROLL, pool, QUORUM, decision()) is Verdict.YES
    assert is_seen(ROLL, pool, QUORUM, decision(*deltas)) is Verdict.YES


def test_strangers_cannot_crowd_out_members():
    pool = Pool(FOUNDERS)
    for number in range(100, 100 + MAX_STRANGERS):
        pool.add(announced_by(number), set())
    assert not pool.has_room(announced_by(999).place, set())
    assert pool.has_room(announced(0).place, set())


def announced_by(number: int) -> Held:
    return held(
        number,
        Announcement(
            delta=number.to_bytes(32, "big"), trained_round=1, base_adapter=GENESIS_ADAPTER, figures=FIGURES
        ),
    )


def test_an_author_s_old_votes_are_dropped_except_where_they_are_needed():
    pool = Pool(FOUNDERS)
    dropped = []
    for attempt in range(3 * KEPT_ATTEMPTS):
        dropped += pool.add(held(0, Prevote(choice=b""), attempt), {5})[1]
    assert len(pool) == KEPT_ATTEMPTS + 1
    assert pool.at(held(0, Prevote(choice=b""), 5).place) is not None
    assert {place.kind for place in dropped} == {Kind.PREVOTE}
    assert not pool.has_room(held(0, Prevote(choice=b""), 6).place, {5})


def test_a_liar_s_conflicts_are_dropped_with_its_old_attempts():
    pool = Pool(FOUNDERS)
    for attempt in range(3 * KEPT_ATTEMPTS):
        for choice in (b"", bytes(32)):
            pool.add(held(0, Prevote(choice=choice), attempt), set())
    assert len(pool) == KEPT_ATTEMPTS + 1


def test_nobody_outruns_a_proof_by_voting_far_ahead():
    pool = pool_of(held(0, Prevote(choice=b"")), held(0, Prevote(choice=bytes(32))))
    before = pool.proofs()
    pool.add(held(0, Prevote(choice=b""), attempt=50_000), set())
    assert pool.proofs() == before != {}
    assert pool.has_frame(before[key_of(0).peer].frame())
    assert not pool.is_conflicted(held(0, Prevote(choice=b"")).place)


def test_what_is_remembered_of_strangers_is_bounded_and_told_to_nobody():
    pool = pool_of()
    for number in range(100, 100 + 2 * MAX_EXCLUDED):
        one, other = held(number, Prevote(choice=b"")), held(number, Prevote(choice=bytes(32)))
        pool.remember(make_evidence(one, other))
    assert len(pool.remembered()) == MAX_EXCLUDED
    assert pool.digest() == pool_of().digest()
    assert pool.proofs() == {}


def test_the_digest_follows_the_set():
    first, second = held(0, Prevote(choice=b"")), held(1, Prevote(choice=b""))
    assert pool_of(first, second).digest() == pool_of(second, first).digest()
    assert pool_of(first).digest() != pool_of(first, second).digest()
