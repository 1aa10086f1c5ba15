"""The schedule that a lock is for: one member decides, and the others must not decide otherwise."""

from __future__ import annotations

from collections.abc import Callable

from sterna_protocol.swarm.committee import proposers
from sterna_protocol.wire.messages import (
    Certificate,
    Kind,
    Precommit,
    Prevote,
    Proposal,
    Signed,
    decode_body,
    decode_frame,
)
from tests.support.virtual_network import VirtualNetwork
from tests.support.virtual_peer import Peer, key_of, virtual_charter


class OneDecides:
    """Members a, b, c, d. In attempt 0 of round 1, a proposes V and only d sees that it is decided.

    c's attestation comes late; c misses the proposal and d's attestation, prevotes and precommits nil, and
    proposes something else in attempt 1. a and b are locked on V. Without ``d_decides``, d misses the
    precommits and nobody decides.
    """

    def __init__(self, *, d_decides: bool = True) -> None:
        founders = tuple(sorted(key_of(number).peer for number in range(4)))
        self.net = VirtualNetwork(3, 4, charter=virtual_charter(founders, min_deltas=4))
        order = proposers(self.net.charter.founders, self.net.charter.swarm_id)
        self.a, self.c, self.d, self.b = (self.net.by_id[peer] for peer in order)
        self.net.syncs = lambda asker, peer: False
        self.net.passes = self._passes
        self._d_decides = d_decides

    def _passes(self, sender: Peer, receiver: Peer, frame: bytes) -> bool:
        message = decode_frame(frame)
        if isinstance(message, Certificate):
            return False
        if not isinstance(message, Signed) or message.round_ != 1 or message.attempt != 0:
            return sender is not self.d
        match Kind(message.kind):
            case Kind.COMMITMENT | Kind.ANNOUNCEMENT:
                return True
            case Kind.ATTESTATION:
                if sender is self.c:
                    return self.has_stored(self.c, 0, Kind.PRECOMMIT)
                return (sender, receiver) != (self.d, self.c)
            case Kind.PROPOSAL:
                return receiver is not self.c
            case Kind.PREVOTE:
                return (sender, receiver) != (self.d, self.c)
            case Kind.PRECOMMIT:
                return sender is not self.d and (receiver is not self.d or self._d_decides)
        return False

    def run_until(self, condition: Callable[[], bool], limit: float = 100.0) -> None:
        self.net.run(lambda net: condition(), limit)
        assert condition()

    def has_stored(self, peer: Peer, attempt: int, kind: Kind) -> bool:
        return (1, attempt, kind) in peer.disk.own

    def choice(self, peer: Peer, attempt: int, kind: Kind) -> bytes:
        """What ``peer`` signed."""
        message = decode_frame(peer.disk.own[1, attempt, kind])
        assert isinstance(message, Signed)
        body = decode_body(message)
        if isinstance(body, Proposal):
            return body.decision.id
        assert isinstance(body, Prevote | Precommit)
        return body.choice

    def lift(self) -> None:
        """The network works from now on."""
        self.net.passes = lambda sender, receiver, frame: True
        self.net.syncs = lambda asker, peer: True


def test_a_decided_round_is_not_decided_otherwise_in_a_later_attempt():
    world = OneDecides()
    world.run_until(lambda: bool(world.d.disk.certificates))
    world.run_until(lambda: world.has_stored(world.c, 1, Kind.PROPOSAL))
    world.run_until(lambda: world.has_stored(world.b, 1, Kind.PREVOTE))
    assert world.choice(world.c, 1, Kind.PROPOSAL) != world.d.disk.certificates[0].id
    assert world.choice(world.b, 1, Kind.PREVOTE) == b""
    world.lift()
    world.net.run_rounds(3)


def test_a_lock_survives_a_restart():
    world = OneDecides()
    locked = (world.a, world.b)
    world.run_until(lambda: bool(world.d.disk.certificates))
    world.run_until(lambda: all(world.has_stored(peer, 0, Kind.PRECOMMIT) for peer in locked))
    for peer in locked:
        world.net.crash(peer)
    world.run_until(lambda: all(peer.node is not None for peer in locked))
    world.run_until(lambda: world.has_stored(world.c, 1, Kind.PROPOSAL))
    world.net.syncs = lambda asker, peer: world.d not in (asker, peer)
    world.run_until(lambda: all(world.has_stored(peer, 1, Kind.PREVOTE) for peer in locked))
    assert world.choice(world.c, 1, Kind.PROPOSAL) != world.d.disk.certificates[0].id
    assert [world.choice(peer, 1, Kind.PREVOTE) for peer in locked] == [b"", b""]
    world.lift()
    world.net.run_rounds(3)


def test_a_lock_record_holds_all_that_a_restarted_swarm_needs_to_go_on():
    """The proposer a and a prevoter of attempt 0 never come back with what the locked members relied on."""
    world = OneDecides(d_decides=False)
    members = (world.a, world.b, world.d)
    world.run_until(lambda: all(world.has_stored(peer, 0, Kind.PRECOMMIT) for peer in members))
    choice = world.choice(world.b, 0, Kind.PRECOMMIT)
    for peer in world.net.peers:
        world.net.crash(peer)
    world.a.disk.own.clear()
    silenced = world.a
    world.net.passes = lambda sender, receiver, frame: silenced not in (sender, receiver)
    world.net.syncs = lambda asker, peer: silenced not in (asker, peer)
    rest = (world.b, world.c, world.d)
    world.run_until(lambda: all(peer.disk.certificates for peer in rest), 300.0)
    assert world.b.disk.certificates[0].id == choice


def test_neither_half_of_a_swarm_closes_a_round_alone():
    net = VirtualNetwork(5, 4)
    half = {net.peers[0].number, net.peers[1].number}
    net.passes = lambda sender, receiver, frame: (sender.number in half) == (receiver.number in half)
    net.syncs = lambda asker, peer: False
    net.run(lambda net: False, 120.0)
    assert [peer.disk.certificates for peer in net.peers] == [[], [], [], []]
    net.passes = lambda sender, receiver, frame: True
    net.syncs = lambda asker, peer: True
    net.run_rounds(2, 300.0)
