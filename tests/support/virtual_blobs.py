"""Deltas and adapters of the virtual network: made, found with a peer that holds them, merged."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from sterna_protocol.round.effects import FetchDelta, Merge
from tests.support.virtual_peer import FIGURES, GENESIS_ADAPTER, Peer, merged_adapter

if TYPE_CHECKING:
    from tests.support.virtual_network import VirtualNetwork


class VirtualBlobs:
    """Carries out what the nodes of ``net`` ask for about blobs."""

    def __init__(self, net: VirtualNetwork) -> None:
        self._net = net

    def train(self, peer: Peer, round_: int) -> None:
        delta = hashlib.sha256(b"delta %d %d" % (peer.number, round_)).digest()
        peer.disk.blobs.add(delta)
        self._net.input(
            peer, lambda node: node.trained(self._net.now, round_=round_, delta=delta, figures=FIGURES)
        )

    def _holders(self, peer: Peer, blob: bytes) -> list[Peer]:
        return [
            other
            for other in self._net.peers
            if blob in other.disk.blobs
            and self._net.are_connected(peer, other)
            and other.behaviour.serves_to(peer.number)
        ]

    def fetch_delta(self, peer: Peer, effect: FetchDelta, tries: int = 3) -> None:
        if effect.delta in peer.disk.blobs or self._holders(peer, effect.delta):
            self._net.later(peer, self._net.random.uniform(0.01, 0.5), lambda: self._fetched(peer, effect))
        elif tries:
            self._net.later(peer, 0.5, lambda: self.fetch_delta(peer, effect, tries - 1))
        else:
            error = "no holder was reached"
            self._net.later(
                peer,
                0.5,
                lambda: self._net.input(
                    peer, lambda node: node.delta_checked(self._net.now, effect.announcement, error)
                ),
            )

    def _fetched(self, peer: Peer, effect: FetchDelta) -> None:
        peer.disk.blobs.add(effect.delta)
        self._net.input(peer, lambda node: node.delta_checked(self._net.now, effect.announcement, None))

    def merge(self, peer: Peer, effect: Merge) -> None:
        missing = [entry for entry in effect.entries if entry.delta not in peer.disk.blobs]
        if missing:
            self._net.judge.violations.append(
                f"peer {peer.number} is asked to merge a delta that it does not hold"
            )
        adapter = merged_adapter(effect.previous_adapter, effect.entries)
        if not peer.behaviour.merges:
            adapter = bytes(reversed(adapter))
        peer.disk.blobs.add(adapter)
        self._net.input(peer, lambda node: node.merged(self._net.now, effect.slate, adapter))

    def fetch_adapter(self, peer: Peer, adapter: bytes) -> None:
        if adapter in peer.disk.blobs or adapter == GENESIS_ADAPTER or self._holders(peer, adapter):
            peer.disk.blobs.add(adapter)
            self._net.later(
                peer,
                self._net.random.uniform(0.01, 0.5),
                lambda: self._net.input(peer, lambda node: node.adapter_ready(self._net.now, adapter)),
            )
        else:
            self._net.later(peer, 1.0, lambda: self.fetch_adapter(peer, adapter))
