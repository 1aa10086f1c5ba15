"""Swarms with faults of every kind: safety at every event, progress after the network healed."""

from __future__ import annotations

import pytest

from tests.support.byzantine import BYZANTINE
from tests.support.trials import trial
from tests.support.virtual_network import VirtualNetwork
from tests.support.virtual_peer import Peer

SEEDS = range(16)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_swarm_with_faults_keeps_one_chain_and_goes_on_after_they_end(seed):
    trial(seed)


def test_equal_seeds_give_equal_runs():
    traces = [trial(seed, rounds=2, heal_seconds=20.0).trace_digest for seed in (7, 7, 8)]
    assert traces[0] == traces[1] != traces[2]


@pytest.mark.parametrize("kind", BYZANTINE)
def test_one_liar_of_four_does_not_stop_a_swarm(kind):
    net = VirtualNetwork(11, 4, behaviours={3: BYZANTINE[kind]})
    net.run_rounds(4, 600.0)


@pytest.mark.parametrize("kind", [kind for kind in BYZANTINE if kind.startswith("two-faced")])
def test_a_proven_liar_is_excluded_by_all_alike_and_rounds_go_on(kind):
    net = VirtualNetwork(12, 5, behaviours={4: BYZANTINE[kind]})
    liar = net.peers[4].id
    net.run(lambda net: all(excluded_by(peer) for peer in net.honest), 600.0)
    assert [excluded_by(peer) for peer in net.honest] == [(liar,)] * 4
    net.run_rounds(len(net.peers[0].disk.certificates) + 2, 1000.0)
    assert all(peer.node is not None and liar not in peer.node.committee for peer in net.honest)


def excluded_by(peer: Peer) -> tuple[bytes, ...]:
    return peer.disk.certificates[-1].decision.excluded if peer.disk.certificates else ()


def test_rounds_close_long_before_their_longest_time_when_everybody_delivers():
    net = VirtualNetwork(2, 5)
    net.run_rounds(4, 4 * 20.0)
    assert all(included for peer in net.peers for _, included in peer.closed)


def test_a_peer_that_comes_late_is_in_the_chain_and_the_committee_soon():
    net = VirtualNetwork(4, 5, founders=4)
    late = net.peers[4]
    net.run(lambda net: late.node is not None, 10.0)
    net.run_rounds(3, 200.0)
    assert late.node is not None and late.id in late.node.committee


def test_a_slow_trainer_takes_part_with_stale_deltas():
    net = VirtualNetwork(6, 4, train_seconds=(2.0, 4.0))
    slow = net.peers[3]
    net.slow = {3: 30.0}
    net.run_rounds(8, 600.0)
    assert any(included for _, included in slow.closed)
