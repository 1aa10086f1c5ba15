"""The network: who is a neighbour of whom, who is cut off, and what becomes of a message."""

from __future__ import annotations

from collections.abc import Sequence

from sterna.simulate.dice import Dice
from sterna.simulate.faults import Faults

FULL_MESH_PEERS = 48
"""Up to here everybody sends to everybody and nobody relays: a lost message is lost until it is repeated or
pulled. Above, gossip is relayed over a mesh, as GossipSub does."""

RINGS = 4
"""Random rings that the mesh is made of: 8 neighbours each, between GossipSub's 6 and 12."""

CUT_SECONDS = (5.0, 40.0)
"""How long the network stays divided: from a vote's time to more than a whole round."""


class Network:
    """Between ``peers`` peers; it fails as ``faults`` say until ``heal`` is called.

    ``side``: while a partition lasts, which side each peer is on.
    """

    def __init__(self, seed: int, peers: int, faults: Faults) -> None:
        self.faults = faults
        self.is_relayed = peers > FULL_MESH_PEERS
        self._dice = Dice(seed, "network")
        self._peers = peers
        self.side: list[int] | None = None
        self._loss = faults.loss
        self._duplicate = faults.duplicate

    def neighbours(self) -> list[tuple[int, ...]]:
        """For each peer those that it sends to."""
        everybody = range(self._peers)
        if not self.is_relayed:
            return [tuple(other for other in everybody if other != number) for number in everybody]
        mesh: list[dict[int, None]] = [{} for _ in everybody]
        for _ in range(RINGS):
            ring = self._dice.shuffled(everybody)
            for one, other in zip(ring, ring[1:] + ring[:1], strict=True):
                mesh[one][other] = None
                mesh[other][one] = None
        return [tuple(sorted(found)) for found in mesh]

    def latency(self) -> float:
        return self._dice.around(self.faults.latency)

    def is_lost(self) -> bool:
        return self._loss > 0 and self._dice.chance(self._loss)

    @property
    def duplicates(self) -> bool:
        """Whether ``copies`` may be more than one."""
        return self._duplicate > 0

    def copies(self) -> int:
        return 2 if self.duplicates and self._dice.chance(self._duplicate) else 1

    # Partitions

    def divide(self) -> float:
        """Cut the swarm in two or three at random; returns for how many seconds."""
        weights: Sequence[float] = self._dice.pick([(0.5,), (0.25,), (0.1,), (0.34, 0.67)])
        sides: list[int] = []
        for _ in range(self._peers):
            place = self._dice.between(0.0, 1.0)
            sides.append(sum(place >= bound for bound in weights))
        self.side = sides
        return self._dice.between(*CUT_SECONDS)

    def unite(self) -> float:
        """End the partition; returns after how many seconds the next begins."""
        self.side = None
        share = self.faults.partition
        return self._dice.between(*CUT_SECONDS) * (1 - share) / share

    def heal(self) -> None:
        """From now on nothing is lost, doubled or cut."""
        self._loss = self._duplicate = 0.0
        self.side = None
