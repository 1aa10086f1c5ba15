"""Whoever comes late checks every step of the way, and is soon where the others are."""

from __future__ import annotations

import pytest

from sterna_protocol.node import Node
from sterna_protocol.round.effects import FetchAdapter, Misbehaved, StoreCertificate
from sterna_protocol.round.heads import Frames, encode_sync
from sterna_protocol.wire.messages import Certificate, Decision
from tests.support.founders import PEERS, certificate, decision, digest, node, of_type
from tests.support.links import Faults
from tests.support.virtual_network import VirtualNetwork

FOUNDERS = 5
LATE = 5
ROUNDS, JOINS = 100, 50


def until_all_have(net: VirtualNetwork, round_: int, numbers: range) -> None:
    net.run(lambda net: all(len(net.peers[number].disk.certificates) >= round_ for number in numbers), 1e6)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [0.0, 0.2])
def test_who_joins_at_round_50_of_100_has_the_certified_adapter_within_one_round(loss: float):
    net = VirtualNetwork(
        50, FOUNDERS + 1, founders=FOUNDERS, late=frozenset({LATE}), faults=Faults(loss=loss)
    )
    until_all_have(net, JOINS - 1, range(FOUNDERS))
    newcomer = net.peers[LATE]
    net.boot(newcomer)
    booted, before = net.now, max(len(peer.disk.certificates) for peer in net.peers)
    assert newcomer.disk.certificates == []

    def is_there(net: VirtualNetwork) -> bool:
        status = newcomer.node.status()
        return status.round_ >= JOINS and status.adapter_ready

    net.run(is_there, net.now + 1000.0)
    assert is_there(net)
    longest = max(len(peer.disk.certificates) for peer in net.peers)
    assert longest - before <= 1
    assert net.now - booted < 2.0
    until_all_have(net, JOINS + 2, range(FOUNDERS + 1))
    # It does not only follow: its delta is in one of the next slates.
    assert any(included for _, included in newcomer.closed)
    until_all_have(net, ROUNDS, range(FOUNDERS + 1))
    chains = {tuple(made.id for made in peer.disk.certificates[:ROUNDS]) for peer in net.peers}
    assert len(chains) == 1


def response(*certificates: Certificate) -> bytes:
    return encode_sync(Frames(frames=tuple(made.frame() for made in certificates)))


def later(before: Certificate, **changes: object) -> Certificate:
    """A void certificate that follows ``before``."""
    values = {
        "round_": before.round_ + 1,
        "previous": before.id,
        "adapter": before.decision.adapter,
    } | changes
    made: Decision = decision(**values)
    return certificate(made)


FIRST = certificate(decision(1, 2))
FORGED = {
    "unsigned by the committee": FIRST.model_copy(
        update={"decision": FIRST.decision.model_copy(update={"adapter": digest(5)})}
    ),
    "signed by too few": certificate(decision(1, 2), signers=(1, 2)),
    "of another history": certificate(decision(1, 2, previous=digest(3))),
}


@pytest.mark.parametrize("lie", FORGED)
def test_a_donor_that_forges_certificates_is_blamed_and_the_next_one_is_asked(lie: str):
    joining: Node = node(trains=False)
    liar, honest = sorted(PEERS)[:2]
    effects = joining.synced(1.0, liar, response(FORGED[lie], later(FORGED[lie])))
    assert [effect.peer for effect in of_type(effects, Misbehaved)] == [liar]
    assert of_type(effects, StoreCertificate) == []
    assert joining.round_ == 1
    effects = joining.synced(2.0, honest, response(FIRST, later(FIRST)))
    assert [effect.certificate for effect in of_type(effects, StoreCertificate)] == [FIRST, later(FIRST)]
    assert joining.round_ == 3
    # The adapter is asked for by its digest: a donor of blobs is believed nothing either.
    [fetch] = of_type(effects, FetchAdapter)
    assert fetch.adapter == FIRST.decision.adapter
    assert len(fetch.holders) >= 3


def test_a_donor_that_lies_half_way_gives_what_checks_out_and_no_more():
    joining: Node = node(trains=False)
    liar = sorted(PEERS)[0]
    second = later(FIRST)
    effects = joining.synced(1.0, liar, response(FIRST, later(FIRST, adapter=digest(9)), later(second)))
    assert [effect.certificate for effect in of_type(effects, StoreCertificate)] == [FIRST]
    assert [effect.peer for effect in of_type(effects, Misbehaved)] == [liar]
    assert joining.round_ == 2
