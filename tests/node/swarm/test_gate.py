"""What the own hold-out text speaks against is followed, but not served."""

from __future__ import annotations

import math

import pytest

from sterna.errors import WorkerFailed
from sterna.swarm.gate import Gate, Judged
from sterna_protocol.wire.chunks import blob_digest

BASE = b"base"


class Desk:
    """Adapters are their own losses; keeps what was decided."""

    def __init__(self) -> None:
        self.blobs = {blob_digest(BASE): BASE}
        self.decided: list[tuple[Judged, Judged]] = []
        self.judged: list[bytes] = []
        self.fails = False

    def adapter(self, loss: float) -> bytes:
        blob = repr(loss).encode()
        self.blobs[blob_digest(blob)] = blob
        return blob_digest(blob)

    async def judge(self, adapter: bytes) -> float:
        if self.fails:
            raise WorkerFailed("the training process ended by signal 9")
        self.judged.append(adapter)
        return 4.0 if adapter == BASE else float(adapter)

    def has_blob(self, digest: bytes) -> bool:
        return digest in self.blobs

    async def read_blob(self, digest: bytes) -> bytes:
        return self.blobs[digest]

    async def put_verdict(self, served: Judged, newest: Judged) -> None:
        self.decided.append((served, newest))

    def gate(self, **kept: Judged) -> Gate:
        return Gate(self, self.judge, base=BASE, tolerance=0.1, **kept)


async def after(desk: Desk, *losses: float) -> Gate:
    gate = desk.gate()
    for round_, loss in enumerate(losses, start=1):
        await gate.consider(round_, desk.adapter(loss))
    return gate


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("losses", "served"),
    [
        ((3.5,), 1),
        ((4.1,), 1),
        ((4.2,), 0),
        ((3.0, 3.1), 2),
        ((3.0, 3.2), 1),
        ((3.0, 9.0, 3.05), 3),
        ((3.0, 9.0, 8.0), 1),
        ((3.0, math.nan), 1),
        ((3.0, math.inf), 1),
    ],
)
async def test_the_last_adapter_within_the_tolerance_is_served(
    losses: tuple[float, ...], served: int
) -> None:
    desk = Desk()
    gate = await after(desk, *losses)
    assert gate.served is not None
    assert gate.newest is not None
    assert gate.served.round_ == served
    assert gate.newest.round_ == len(losses)
    assert gate.is_holding_back is (served != len(losses))
    assert [judged.round_ for judged in desk.decided[-1]] == [served, len(losses)]


@pytest.mark.asyncio
async def test_a_decision_outlives_the_process() -> None:
    desk = Desk()
    before = await after(desk, 3.0, 9.0)
    assert before.served is not None
    assert before.newest is not None
    desk.judged.clear()
    again = desk.gate(served=before.served, newest=before.newest)
    assert again.is_holding_back
    await again.consider(2, desk.adapter(9.0))
    assert desk.judged == []
    await again.consider(3, desk.adapter(3.05))
    assert again.served == again.newest == Judged(3, desk.adapter(3.05), 3.05)


@pytest.mark.asyncio
async def test_a_void_round_and_an_older_one_are_not_judged_again() -> None:
    desk = Desk()
    gate = await after(desk, 3.0)
    desk.judged.clear()
    await gate.consider(2, desk.adapter(3.0))
    await gate.consider(1, desk.adapter(2.0))
    assert desk.judged == []


@pytest.mark.asyncio
async def test_when_judging_fails_what_was_served_stays() -> None:
    desk = Desk()
    gate = await after(desk, 3.0)
    desk.fails = True
    await gate.consider(2, desk.adapter(2.0))
    assert gate.served == gate.newest == Judged(1, desk.adapter(3.0), 3.0)
    desk.fails = False
    await gate.consider(3, desk.adapter(2.5))
    assert gate.served is not None
    assert gate.served.round_ == 3


@pytest.mark.asyncio
async def test_without_the_served_blob_the_base_is_what_to_be_no_worse_than() -> None:
    desk = Desk()
    gate = await after(desk, 3.0)
    del desk.blobs[desk.adapter(3.0)]
    await gate.consider(2, desk.adapter(3.9))
    assert gate.served is not None
    assert gate.served.round_ == 2
    await gate.consider(3, desk.adapter(9.0))
    assert gate.served.round_ == 2
