"""Traffic: what peers send each other, and what becomes of it: gossip, sync, and uncalled-for attacks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from sterna.simulate.attacks import Gossip, faces, uncalled
from sterna.simulate.crowd import made_up_frames
from sterna.simulate.peer import NEVER, Peer
from sterna.simulate.trace import Happening
from sterna_protocol.errors import RemoteProtocolError, Untimely
from sterna_protocol.node import Node
from sterna_protocol.wire.messages import Signed, decode_frame

if TYPE_CHECKING:
    from sterna.simulate.world import World

HEADS_SECONDS = 2.0
"""Mean time between two exchanges of heads, as in sterna.swarm.driver."""

ONE_LIE = 0.5
"""How often a liar tells everybody the same: a quorum can only be led astray together."""

remembering_decode = lru_cache(maxsize=1 << 12)(decode_frame)
"""``decode_frame`` that decodes a good frame once for all nodes of the process: records never change."""


class Traffic:
    """All messages of a ``world`` go through here; ``gossip`` is what the liars listen to."""

    def __init__(self, world: World, gossip: Gossip) -> None:
        self._world = world
        self.gossip = gossip
        self._network = world.network
        self._dice = world.dice

    # Gossip

    def publish(self, peer: Peer, frame: bytes) -> None:
        """Send a frame that the peer's node wants to be sent."""
        item = remembering_decode(frame)
        if isinstance(item, Signed):
            self.gossip.note(item, frame)
        others = self._world.neighbours(peer)
        attack = peer.attack
        if attack is None:
            self._spread(peer, others, frame)
            return
        shown = faces(attack, peer.key, frame, self.gossip, peer.disk.adapter())
        if self._dice.chance(ONE_LIE):
            shown = [self._dice.pick(shown)]
        for other in others:
            if self._dice.chance(attack.shown):
                self.transmit(peer, other, self._dice.pick(shown))

    def transmit(self, sender: Peer, receiver: Peer, frame: bytes) -> None:
        """Send a frame; what the network makes of it is drawn."""
        copies = self._network.copies()
        sender.messages += copies
        sender.bytes += copies * len(frame)
        for copy in range(copies):
            self._carry(sender, receiver, frame, is_copy=copy > 0)

    def _spread(self, sender: Peer, receivers: Sequence[Peer], frame: bytes) -> None:
        """Send a frame to each of ``receivers``."""
        if self._network.duplicates:
            for receiver in receivers:
                self.transmit(sender, receiver, frame)
            return
        sender.messages += len(receivers)
        sender.bytes += len(receivers) * len(frame)
        now = self._world.now
        for receiver in receivers:
            # As _carry begins: most of what is relayed has come on another way.
            if receiver.accepted.get(frame, NEVER) > now:
                self._carry(sender, receiver, frame)

    def _carry(self, sender: Peer, receiver: Peer, frame: bytes, *, is_copy: bool = False) -> None:
        network, now = self._network, self._world.now
        # What is sent once more to one who took it changes nothing: it counts, but nobody waits for it.
        # Copies that the network makes do arrive, so that nodes meet them too.
        if not is_copy and receiver.accepted.get(frame, NEVER) <= now:
            return
        if network.is_lost():
            return
        delay = network.latency()
        if not is_copy:
            if receiver.accepted.get(frame, NEVER) <= now + delay:
                return
            receiver.accepted[frame] = now + delay
        self._world.later(receiver, delay, self.deliver, sender, frame)

    def deliver(self, receiver: Peer, sender: Peer, frame: bytes) -> None:
        """A frame arrives."""
        world, node = self._world, receiver.node
        if node is None:
            return
        if not world.are_linked(sender, receiver):
            receiver.accepted.pop(frame, None)
            return
        world.trace.note(world.now, Happening.FRAME, receiver.number, frame)
        if not self._network.duplicates and node.holds(frame):
            # It came on a quicker way. A network that makes copies lets the node find that out.
            receiver.accepted[frame] = world.now
            return
        try:
            effects = node.receive(receiver.clock(world.now), frame, sender.key.peer)
        except Untimely:
            if node.holds(frame):
                receiver.accepted[frame] = world.now
            else:
                receiver.accepted.pop(frame, None)
            return
        except RemoteProtocolError as error:
            if receiver.is_honest and sender.is_honest:
                world.invariants.blamed(receiver.number, sender.number, str(error))
            return
        if self._network.is_relayed:
            self._relay(receiver, sender, frame)
        world.perform(receiver, effects)

    def _relay(self, peer: Peer, sender: Peer, frame: bytes) -> None:
        others = [other for other in self._world.neighbours(peer) if other is not sender]
        attack = peer.attack
        if attack is None:
            self._spread(peer, others, frame)
            return
        for other in others:
            if self._dice.chance(attack.shown):
                self.transmit(peer, other, frame)

    def attack(self, peer: Peer) -> None:
        """What an active attacker does every second."""
        node, attack = peer.node, peer.attack
        others = self._world.neighbours(peer)
        if node is None or attack is None:
            return
        if others:
            frames = uncalled(
                attack,
                self._dice,
                peer.key,
                swarm=self._world.charter.swarm_id,
                round_=node.round_,
                adapter=peer.disk.adapter(),
                victims=[victim.key.peer for victim in self._world.honest],
                gossip=self.gossip,
            )
            for frame in frames:
                self.transmit(peer, self._dice.pick(others), frame)
            if attack.makes_up:
                self._make_up(peer, node)
        self._world.later(peer, 1.0, self.attack)

    def _make_up(self, peer: Peer, node: Node) -> None:
        """Tell everybody near what the peers say that this one made up, and hold their deltas for them."""
        for key, delta, frame in made_up_frames(self._world.charter, peer.number, node):
            self._world.by_id[key.peer] = peer
            peer.disk.blobs.add(delta)
            for other in self._world.neighbours(peer):
                self.transmit(peer, other, frame)

    # Sync

    def exchange(self, peer: Peer) -> None:
        """Ask a neighbour for its heads, again and again."""
        others = self._world.neighbours(peer)
        if others and peer.node is not None:
            self.ask(peer, self._dice.pick(others), peer.node.heads())
        self._world.later(peer, HEADS_SECONDS * self._dice.between(0.5, 1.5), self.exchange)

    def ask(self, asker: Peer, peer: Peer, data: bytes) -> None:
        """Send a sync request."""
        asker.messages += 1
        asker.bytes += len(data)
        if not self._network.is_lost() and self._world.are_linked(asker, peer):
            self._world.later(peer, self._network.latency(), self._respond, asker, data)

    def _respond(self, peer: Peer, asker: Peer, data: bytes) -> None:
        world, node, attack = self._world, peer.node, peer.attack
        if node is None or not world.are_linked(asker, peer) or (attack is not None and not attack.answers):
            return
        world.trace.note(world.now, Happening.REQUEST, peer.number, data)
        response = node.answer(asker.key.peer, data)
        if attack is not None and attack.garbles:
            response = response[:1] + response[2:] if self._dice.chance(0.5) else response[:-40]
        peer.messages += 1
        peer.bytes += len(response)
        if not self._network.is_lost():
            world.later(asker, self._network.latency(), self._synced, peer, response)

    def _synced(self, asker: Peer, peer: Peer, response: bytes) -> None:
        world = self._world
        world.trace.note(world.now, Happening.RESPONSE, asker.number, response)
        world.input(asker, lambda node, now: node.synced(now, peer.key.peer, response), peer)
