"""Blobs: training, fetching and merging in virtual time. A blob is its digest and the disks that hold it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sterna.simulate.learning import GENESIS_ADAPTER, Learning
from sterna.simulate.peer import Peer
from sterna_protocol.round.effects import FetchDelta, Merge, Train
from sterna_protocol.wire.messages import Figures

if TYPE_CHECKING:
    from sterna.simulate.world import World

FIGURES = Figures(
    loss_before_micronats=3_000_000,
    loss_after_micronats=2_900_000,
    steps=40,
    tokens=40_960,
    milliseconds=60_000,
)
TRAIN_SECONDS = (2.0, 10.0)
FETCH_SECONDS = (0.01, 0.5)
MERGE_SECONDS = (0.01, 0.3)
RETRY_SECONDS = 0.5
FETCH_TRIES = 4


class Blobs:
    """What peers of a ``world`` ask for with Train, FetchDelta, Merge and FetchAdapter."""

    def __init__(self, world: World, learning: Learning) -> None:
        self._world = world
        self._learning = learning
        self._dice = world.dice

    def train(self, peer: Peer, effect: Train) -> None:
        patience = 0.0 if peer.attack is None else peer.attack.patience
        seconds = patience + self._dice.between(*TRAIN_SECONDS)
        self._world.later(peer, seconds, self._trained, effect)

    def fetch_delta(self, peer: Peer, effect: FetchDelta, tries: int = FETCH_TRIES) -> None:
        later, holders = self._world.later, self._world.by_id
        is_had = effect.delta in peer.disk.blobs or any(
            self._gives(holders.get(holder), peer, effect.delta) for holder in effect.holders
        )
        if is_had:
            later(peer, self._dice.between(*FETCH_SECONDS), self._fetched, effect, None)
        elif tries:
            later(peer, RETRY_SECONDS, self.fetch_delta, effect, tries - 1)
        else:
            later(peer, RETRY_SECONDS, self._fetched, effect, "no holder was reached")

    def merge(self, peer: Peer, effect: Merge) -> None:
        self._world.later(peer, self._dice.between(*MERGE_SECONDS), self._merged, effect)

    def fetch_adapter(self, peer: Peer, adapter: bytes, holders: tuple[bytes, ...]) -> None:
        is_had = (
            adapter == GENESIS_ADAPTER
            or adapter in peer.disk.blobs
            or any(self._gives(self._world.by_id.get(holder), peer, adapter) for holder in holders)
        )
        if is_had:
            peer.disk.blobs.add(adapter)
            self._world.later(peer, self._dice.between(*FETCH_SECONDS), self._adapter_ready, adapter)
        else:
            self._world.later(peer, 2 * RETRY_SECONDS, self.fetch_adapter, adapter, holders)

    def _gives(self, holder: Peer | None, peer: Peer, blob: bytes) -> bool:
        # Behind a key that was made up there is nobody.
        if holder is None or blob not in holder.disk.blobs or not self._world.are_linked(holder, peer):
            return False
        return holder.attack is None or self._dice.chance(holder.attack.serves)

    def _trained(self, peer: Peer, effect: Train) -> None:
        delta = self._learning.trained(peer.number, effect.round_, effect.adapter)
        peer.disk.blobs.add(delta)
        self._world.input(
            peer, lambda node, now: node.trained(now, round_=effect.round_, delta=delta, figures=FIGURES)
        )

    def _fetched(self, peer: Peer, effect: FetchDelta, error: str | None) -> None:
        if error is None:
            peer.disk.blobs.add(effect.delta)
        self._world.input(peer, lambda node, now: node.delta_checked(now, effect.announcement, error))

    def _merged(self, peer: Peer, effect: Merge) -> None:
        missing = [entry for entry in effect.entries if entry.delta not in peer.disk.blobs]
        if missing and peer.is_honest:
            self._world.invariants.broken(f"peer {peer.number} is to merge a delta that it does not hold")
        adapter = self._learning.merged(
            effect.round_, effect.previous_adapter, effect.entries, effect.branches
        )
        if peer.attack is not None and not peer.attack.merges:
            adapter = bytes(reversed(adapter))
        peer.disk.blobs.add(adapter)
        self._world.input(peer, lambda node, now: node.merged(now, effect.slate, adapter))

    def _adapter_ready(self, peer: Peer, adapter: bytes) -> None:
        self._world.input(peer, lambda node, now: node.adapter_ready(now, adapter))
