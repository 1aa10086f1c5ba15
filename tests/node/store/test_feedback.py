"""What sparse deltas left out is counted exactly once, wherever the node is stopped."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from sterna.errors import StorageError
from sterna.store import Disk, PendingDelta, Store, open_store
from sterna_protocol.merge.feedback import Unsent
from sterna_protocol.wire.chunks import blob_digest
from sterna_protocol.wire.messages import Certificate
from tests.node.store import sample

CHARTER = sample.charter(subspaces=2, retention_rounds=2)  # a delta may be one round late
SWARM, SCHEME = CHARTER.swarm_id, CHARTER.adapter
ROUNDS = 9
MERGED_IN = {1: 1, 3: 4, 6: 6, 9: 9}
"""Round of training -> round whose slate took the delta; the others' were dropped."""

SENT = 100
"""A delta holds what there is to send in whole hundreds."""


def learned(round_: int) -> int:
    return 1000 * round_ + 70 + round_


def total_blob(total: int) -> bytes:
    return b"total %d" % total


def delta_blob(round_: int, total: int) -> bytes:
    return b"delta %d of round %d" % (total // SENT * SENT, round_)


def left(unsent: Unsent | None) -> int:
    if unsent is None:
        return 0
    sent = 0 if unsent.sent is None else int(unsent.sent.split()[1])
    return int(unsent.total.split()[1]) - sent


def train(store: Store, round_: int) -> bytes:
    """The digest of the delta of ``round_``, trained now or before a crash."""
    pending = store.pending(SWARM)
    if pending is not None and pending.round_ == round_:
        return pending.delta
    store.feedback.settle(SWARM, SCHEME, round_)
    total = learned(round_) + left(store.feedback.unsent(SWARM, round_ % 2))
    delta = store.blobs.put(delta_blob(round_, total))
    store.put_pending(
        SWARM, PendingDelta(round_, b"a" * 32, delta, sample.FIGURES, store.blobs.put(total_blob(total)))
    )
    return delta


def trains_in(round_: int) -> bool:
    """Not while a delta waits that a later slate will take, as the node does."""
    return not any(trained < round_ <= merged for trained, merged in MERGED_IN.items())


def live(store: Store, merged: dict[int, int]) -> None:
    """Go on to the end; ``merged`` is what each slate held of this node's."""
    store.add_swarm(sample.signed(CHARTER).encode())
    frames = store.certificates(SWARM)
    for round_ in range(len(frames) + 1, ROUNDS + 1):
        if trains_in(round_):
            train(store, round_)
        pending = store.pending(SWARM)
        assert pending is not None
        slate: tuple[bytes, ...] = ()
        if MERGED_IN.get(pending.round_) == round_:
            slate = (pending.delta,)
            merged[round_] = int(store.blobs.read(pending.delta).split()[1])
        previous = Certificate.decode(frames[-1][1:]).id if frames else SWARM
        certificate = sample.certificate(CHARTER, round_, previous, adapter=bytes(32), deltas=slate)
        store.put_certificate(SWARM, round_, certificate.frame())
        frames = store.certificates(SWARM)
        store.collect()


def settled(store: Store, merged: dict[int, int]) -> int:
    """All that was merged and all that is left, after the last round."""
    store.feedback.settle(SWARM, SCHEME, ROUNDS + 1)
    return sum(merged.values()) + sum(left(store.feedback.unsent(SWARM, number)) for number in (0, 1))


EXPECTED = sum(learned(round_) for round_ in range(1, ROUNDS + 1) if trains_in(round_))


class Stopping:
    """Ends the node right before change number ``step`` of its disk, and lets no later one happen."""

    def __init__(self, step: int) -> None:
        self.count = 0
        self._step = step

    def __call__(self, name: str) -> None:
        self.count += 1
        if self._step and self.count >= self._step:
            raise OSError(errno.EIO, os.strerror(errno.EIO), name)


def run(home: Path, stop: Callable[[str], None], merged: dict[int, int]) -> None:
    with open_store(home, disk=Disk(stop)) as store:
        live(store, merged)


def test_all_that_was_learned_is_merged_or_left(tmp_path: Path) -> None:
    merged: dict[int, int] = {}
    with open_store(tmp_path / "home") as store:
        live(store, merged)
        assert merged.keys() == set(MERGED_IN.values())
        assert settled(store, merged) == EXPECTED


def test_a_node_stopped_before_any_change_of_its_disk_counts_everything_once(folder: Path) -> None:
    whole = Stopping(0)
    run(folder / "whole", whole, {})
    assert whole.count > 100
    for step in range(1, whole.count + 1):
        home, merged = folder / "home", {}
        with suppress(StorageError):
            run(home, Stopping(step), merged)
        with open_store(home) as store:
            live(store, merged)
            assert settled(store, merged) == EXPECTED, step
        shutil.rmtree(home)


def test_deciding_twice_changes_nothing(tmp_path: Path) -> None:
    with open_store(tmp_path / "home") as store:
        live(store, merged := {})
        assert settled(store, merged) == settled(store, merged) == EXPECTED


def test_a_subspace_keeps_its_own_residual(tmp_path: Path) -> None:
    with open_store(tmp_path / "home") as store:
        store.add_swarm(sample.signed(CHARTER).encode())
        train(store, 1)
        store.feedback.settle(SWARM, SCHEME, 2)
        assert left(store.feedback.unsent(SWARM, 1)) == learned(1)
        assert store.feedback.unsent(SWARM, 0) is None


def test_a_damaged_residual_is_none(tmp_path: Path) -> None:
    with open_store(tmp_path / "home") as store:
        store.add_swarm(sample.signed(CHARTER).encode())
        train(store, 1)
        store.feedback.settle(SWARM, SCHEME, 2)
        store.blobs.path(blob_digest(total_blob(learned(1)))).write_bytes(b"?")
        assert store.feedback.unsent(SWARM, 1) is None


def test_a_total_needs_its_blob(tmp_path: Path) -> None:
    with open_store(tmp_path / "home") as store:
        store.add_swarm(sample.signed(CHARTER).encode())
        train(store, 1)
        pending = store.pending(SWARM)
        assert pending is not None
        with pytest.raises(StorageError, match="put it there first"):
            store.put_pending(SWARM, replace(pending, total=b"t" * 32))
