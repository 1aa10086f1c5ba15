"""What a member makes of a slate that another proposes."""

from __future__ import annotations

from sterna_protocol.round.consensus import Verdict
from sterna_protocol.round.evidence import hold
from sterna_protocol.round.pool import Pool
from sterna_protocol.round.slate import is_seen
from sterna_protocol.swarm.roll import Roll
from sterna_protocol.wire.messages import Attestation, Decision, SlateEntry, sign
from tests.support.charters import key, small_charter

MEMBERS = tuple(sorted(key(number).peer for number in range(1, 5)))
ANNOUNCEMENT = b"a" * 32
ROLL = Roll.founding(small_charter())


def decision() -> Decision:
    author = MEMBERS[0]
    entry = SlateEntry(author=author, announcement=ANNOUNCEMENT, delta=b"d" * 32, trained_round=1)
    return Decision(
        round_=1, previous=b"p" * 32, entries=(entry,), attesters=MEMBERS, excluded=(), adapter=b"n" * 32
    )


def pool_of(supporters: int, *, attesters: int = 4) -> Pool:
    pool = Pool(MEMBERS)
    for number in range(1, attesters + 1):
        body = Attestation(accepted=(ANNOUNCEMENT,) if number <= supporters else ())
        pool.add(hold(sign(key(number), swarm=b"s" * 32, round_=1, attempt=0, body=body)), set())
    return pool


def test_a_delta_waits_for_a_quorum_of_attestations():
    verdicts = [is_seen(ROLL, pool_of(count), 3, decision()) for count in range(5)]
    assert verdicts == [Verdict.WAIT, Verdict.WAIT, Verdict.WAIT, Verdict.YES, Verdict.YES]


def test_a_slate_waits_for_the_attesters_that_it_names():
    assert is_seen(ROLL, pool_of(3, attesters=3), 3, decision()) is Verdict.WAIT
