"""Trials: from a seed, a swarm with faults of every kind, and what must hold of it afterwards."""

from __future__ import annotations

import random

from sterna_protocol.wire.messages import Kind
from tests.support.byzantine import BYZANTINE, Behaviour
from tests.support.links import Faults
from tests.support.virtual_network import VirtualNetwork
from tests.support.virtual_peer import InvariantBroken, key_of, virtual_charter

HEAL_SECONDS = 60.0
"""The network is bad until then: for some six rounds without faults."""

LIMIT_SECONDS = 3000.0

STARVED = (
    frozenset[int](),
    frozenset[int](),
    frozenset({Kind.ATTESTATION, Kind.PRECOMMIT, Kind.CERTIFICATE}),
    frozenset({Kind.ATTESTATION, Kind.PREVOTE, Kind.PRECOMMIT, Kind.CERTIFICATE}),
    frozenset({Kind.ATTESTATION, Kind.PROPOSAL, Kind.CERTIFICATE}),
)
"""Losses that make members decide with little of what the others saw: locks have to hold."""


def trial(seed: int, *, rounds: int = 5, heal_seconds: float = HEAL_SECONDS) -> VirtualNetwork:
    """A swarm of 4 to 7 peers with fewer than a third Byzantine, and faults drawn from ``seed``.

    Raises:
        InvariantBroken: safety was lost, or ``rounds`` rounds did not close after the network healed.
    """
    rng = random.Random(seed)
    peers = rng.randint(4, 7)
    liars = rng.randint(0, (peers - 1) // 3)
    behaviours: dict[int, Behaviour] = {
        peers - 1 - number: BYZANTINE[rng.choice(sorted(BYZANTINE))] for number in range(liars)
    }
    faults = Faults(
        latency=rng.choice([0.02, 0.1, 0.5]),
        loss=rng.choice([0.0, 0.1, 0.3]),
        duplicate=rng.choice([0.0, 0.1]),
        partition_every=rng.choice([0.0, 30.0]),
        partition_for=rng.choice([5.0, 30.0]),
        crash_every=rng.choice([0.0, 20.0, 60.0]),
        starved=rng.choice(STARVED),
        down_for=rng.choice([2.0, 15.0]),
        healed_at=heal_seconds,
    )
    founders = tuple(sorted(key_of(number).peer for number in range(peers)))
    net = VirtualNetwork(
        seed,
        peers,
        faults=faults,
        behaviours=behaviours,
        charter=virtual_charter(founders, min_deltas=rng.choice([1, 2, 3]), max_deltas=rng.choice([3, 64])),
    )
    net.run_rounds(rounds, LIMIT_SECONDS)
    # After the network healed, rounds go on closing.
    net.run(lambda net: net.now >= heal_seconds, LIMIT_SECONDS)
    closed = min(len(peer.disk.certificates) for peer in net.honest)
    net.run_rounds(closed + 2, LIMIT_SECONDS)
    check_chains(net)
    return net


def check_chains(net: VirtualNetwork) -> None:
    """All honest peers have the same certificates as far as they go."""
    for peer in net.honest:
        for certificate in peer.disk.certificates:
            if net.judge.decided[certificate.round_] != certificate.id:
                raise InvariantBroken(f"peer {peer.number} has another round {certificate.round_}")
