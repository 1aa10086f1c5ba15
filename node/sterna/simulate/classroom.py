"""Learning for real: deltas of a trainer, quantised and merged as nodes do it, some of them poisoned."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sterna.simulate.learning import GENESIS_ADAPTER, Synthetic
from sterna.simulate.peer import key_of
from sterna.simulate.poison import POISONS, Poison, Vector, poisoned
from sterna_protocol.merge.adapter import STATE_EXPONENT, Adapter, encode_adapter, genesis_adapter
from sterna_protocol.merge.codec import Delta, dequantise, encode_delta, quantise
from sterna_protocol.merge.rules import merge
from sterna_protocol.merge.scheme import subspace_of
from sterna_protocol.swarm.charter import Charter
from sterna_protocol.swarm.defaults import Linears
from sterna_protocol.swarm.roll import Branches
from sterna_protocol.wire.chunks import blob_digest
from sterna_protocol.wire.messages import SlateEntry


class Trainer(Protocol):
    """The model and everybody's texts: all that this package does not have."""

    @property
    def layers(self) -> int: ...

    @property
    def linears(self) -> Linears: ...

    def train(
        self,
        charter: Charter,
        adapter: Adapter,
        *,
        round_: int,
        peers: Sequence[int],
        mislabelled: Collection[int],
    ) -> Sequence[NDArray[np.float32]]:
        """What each of ``peers`` learns in a round, float32 [n]; some of them from wrong labels."""

    def loss(self, charter: Charter, adapter: Adapter) -> float:
        """Nats per token on text that nobody trains on."""


class Classroom:
    """``Learning`` by training. Each round is taught once, to all peers together.

    Args:
        peers: those who train are the peers 0 .. peers - 1.
        poisons: names of the attacks of those who poison, by number of the peer.
    """

    def __init__(self, trainer: Trainer, charter: Charter, *, peers: int, poisons: Mapping[int, str]) -> None:
        self._trainer = trainer
        self._charter = charter
        self._peers = range(peers)
        self._poisons = {number: POISONS[name] for number, name in poisons.items()}
        self._synthetic = Synthetic()
        self._adapters = {GENESIS_ADAPTER: genesis_adapter(charter)}
        self._deltas: dict[bytes, Delta] = {}
        self._lessons: dict[tuple[int, bytes], list[bytes]] = {}
        self._merges: dict[tuple[int, bytes, tuple[bytes, ...], tuple[tuple[bytes, bytes], ...]], bytes] = {}

    def trained(self, peer: int, round_: int, adapter: bytes) -> bytes:
        if adapter not in self._adapters:
            # Liars beyond the tolerance can certify an adapter that no merge made.
            return self._synthetic.trained(peer, round_, adapter)
        lesson = self._lessons.get((round_, adapter))
        if lesson is None:
            lesson = self._lessons[round_, adapter] = self._taught(round_, self._adapters[adapter])
        return lesson[peer]

    def merged(
        self, round_: int, previous: bytes, entries: Sequence[SlateEntry], branches: Branches
    ) -> bytes:
        if not entries:
            return previous
        if previous not in self._adapters or any(entry.delta not in self._deltas for entry in entries):
            # A liar's proposal: its slate names a delta that nobody made.
            return self._synthetic.merged(round_, previous, entries, branches)
        key = (round_, previous, tuple(entry.delta for entry in entries), tuple(branches))
        if key not in self._merges:
            slate = [(entry, self._deltas[entry.delta]) for entry in entries]
            adapter = merge(self._charter, self._adapters[previous], slate, round_, branches)
            name = blob_digest(encode_adapter(self._charter, adapter))
            self._adapters[name] = adapter
            self._merges[key] = name
        return self._merges[key]

    def loss(self, adapter: bytes) -> float:
        """Held-out nats per token of an adapter that a merge made."""
        return self._trainer.loss(self._charter, self._adapters[adapter])

    def _taught(self, round_: int, previous: Adapter) -> list[bytes]:
        """The deltas of all peers; who forges sees those of the others first."""
        forgers = {peer for peer, poison in self._poisons.items() if poison.forge is not None}
        pupils = [peer for peer in self._peers if peer not in forgers]
        learned = self._trainer.train(
            self._charter, previous, round_=round_, peers=pupils, mislabelled=self._poisons.keys() - forgers
        )
        deltas = {
            peer: quantise(values, self._charter.codec) for peer, values in zip(pupils, learned, strict=True)
        }
        honest = {peer: delta for peer, delta in deltas.items() if peer not in self._poisons}
        forged: dict[Poison, Delta] = {}
        for peer, poison in self._poisons.items():
            if poison.forge is None:
                continue
            if poison not in forged:
                forged[poison] = self._forged(poison, round_, previous, honest)
            deltas[peer] = forged[poison]
        names = []
        for peer in self._peers:
            author = key_of(peer).peer
            blob = encode_delta(self._charter, author=author, round_=round_, delta=deltas[peer])
            names.append(blob_digest(blob))
            self._deltas[names[-1]] = deltas[peer]
        return names

    def _forged(self, poison: Poison, round_: int, previous: Adapter, honest: Mapping[int, Delta]) -> Delta:
        subspace = subspace_of(self._charter.adapter, round_)

        def quantised(vector: Vector) -> Delta:
            return quantise(vector.astype(np.float32), self._charter.codec)

        def merged(vector: Vector) -> Vector:
            lie = quantised(vector)
            deltas = {**honest, **dict.fromkeys(self._poisons, lie)}
            slate = [(entry_of(peer, round_), delta) for peer, delta in deltas.items()]
            after = merge(self._charter, previous, slate, round_)
            change = after.state[subspace].astype(np.int64) - previous.state[subspace]
            moved: Vector = np.ldexp(change.astype(np.float64), STATE_EXPONENT)
            return moved

        vectors = [dequantise(delta).astype(np.float64) for delta in honest.values()]
        return quantised(poisoned(poison, vectors, merged))


def entry_of(peer: int, round_: int) -> SlateEntry:
    """An entry of a slate that is merged without a swarm: its digests name nothing."""
    author = key_of(peer).peer
    return SlateEntry(author=author, announcement=bytes(32), delta=bytes(32), trained_round=round_)


def taught_in_one_room(classroom: Classroom, peers: int, rounds: int) -> list[bytes]:
    """The adapters after each round, from the first, when every peer's delta is merged in every round."""
    adapters, adapter = [], GENESIS_ADAPTER
    for round_ in range(1, rounds + 1):
        entries = [
            entry_of(peer, round_).model_copy(update={"delta": classroom.trained(peer, round_, adapter)})
            for peer in range(peers)
        ]
        adapter = classroom.merged(round_, adapter, entries, ())
        adapters.append(adapter)
    return adapters
