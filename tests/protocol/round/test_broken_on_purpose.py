"""The protocol with one rule taken out: something must notice, or the tests prove nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sterna_protocol.errors import Untimely
from sterna_protocol.node import Node
from sterna_protocol.round import certificate, open_round, setting
from sterna_protocol.round.consensus import Consensus, Verdict
from sterna_protocol.round.deliberation import Deliberation
from sterna_protocol.round.effects import Broadcast
from sterna_protocol.round.open_round import OpenRound
from sterna_protocol.round.recovery import Recovered, recovered_step
from tests.protocol.round import test_closed_round as closed_rounds
from tests.protocol.round import test_heads as heads
from tests.protocol.round import test_locks as locks
from tests.protocol.round import test_pool as pools
from tests.protocol.round import test_trials as trials
from tests.support.trials import trial

Patch = pytest.MonkeyPatch


def no_lock(patch: Patch) -> None:
    consider = Consensus._consider_votes

    def forgetful(self: Consensus, judge: object) -> None:
        consider(self, judge)  # type: ignore[arg-type]
        self.locked = self.valid = None

    patch.setattr(Consensus, "_consider_votes", forgetful)


def no_lock_after_a_restart(patch: Patch) -> None:
    def unlocked(own: object) -> object:
        found = recovered_step(own)  # type: ignore[arg-type]
        return None if found is None else (found[0], found[1], None, found[3])

    patch.setattr(open_round, "recovered_step", unlocked)


def no_lock_record(patch: Patch) -> None:
    patch.setattr(OpenRound, "_store_lock", lambda self, attempt, choice: None)


def a_quorum_off_by_one(patch: Patch) -> None:
    for module in (setting, certificate):
        patch.setattr(module, "quorum", lambda charter, members: 2 * members // 3)


def votes_sent_before_they_are_stored(patch: Patch) -> None:
    advance = OpenRound.advance

    def hasty(self: OpenRound, now: float) -> object:
        effects = advance(self, now)
        return sorted(effects, key=lambda effect: not isinstance(effect, Broadcast))

    patch.setattr(OpenRound, "advance", hasty)


def own_messages_forgotten_at_a_restart(patch: Patch) -> None:
    patch.setattr("sterna_protocol.node.recover", lambda *rest: Recovered({}, (), (), frozenset()))


def prevotes_without_an_own_merge(patch: Patch) -> None:
    patch.setattr(Deliberation, "_recompute", lambda *rest: Verdict.YES)


def ties_broken_by_arrival(patch: Patch) -> None:
    def by_arrival(self: pools.Pool, quorum: int) -> list[bytes]:
        return [name for name in self._supporters if len(self.supporters(name)) >= quorum]

    patch.setattr(pools.Pool, "attested", by_arrival)


def forks_that_nobody_hears_of(patch: Patch) -> None:
    patch.setattr("sterna_protocol.round.chain.Chain.find_fork", lambda self, certificate: None)


def sync_that_brings_nothing(patch: Patch) -> None:
    patch.setattr(Node, "synced", lambda self, now, peer, response: [])


@pytest.mark.parametrize(
    ("break_", "notices"),
    [
        (no_lock, locks.test_a_decided_round_is_not_decided_otherwise_in_a_later_attempt),
        (no_lock_after_a_restart, locks.test_a_lock_survives_a_restart),
        (no_lock_record, locks.test_a_lock_record_holds_all_that_a_restarted_swarm_needs_to_go_on),
        (a_quorum_off_by_one, locks.test_neither_half_of_a_swarm_closes_a_round_alone),
        (votes_sent_before_they_are_stored, lambda: trial(0)),
        (own_messages_forgotten_at_a_restart, lambda: trial(0)),
        (
            prevotes_without_an_own_merge,
            lambda: trials.test_one_liar_of_four_does_not_stop_a_swarm("lying"),
        ),
        (ties_broken_by_arrival, pools.test_the_slate_does_not_depend_on_the_order_of_arrival),
        (
            forks_that_nobody_hears_of,
            closed_rounds.test_a_closed_round_never_changes_and_a_fork_is_reported_once,
        ),
        (sync_that_brings_nothing, heads.test_heads_bring_what_gossip_lost),
    ],
)
def test_a_rule_taken_out_is_noticed(
    monkeypatch: Patch, break_: Callable[[Patch], None], notices: Callable[[], None]
) -> None:
    break_(monkeypatch)
    with pytest.raises((AssertionError, Untimely)):
        notices()
