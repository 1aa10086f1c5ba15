"""The driver: carries out effects in order, and feeds the state machine what the world answers."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress

import numpy as np
import pytest

from sterna.errors import WorkerFailed
from sterna.swarm.activity import Activity
from sterna.swarm.driver import Driver
from sterna.swarm.gate import Gate
from sterna.swarm.ports import LocalDelta
from sterna_protocol.merge.adapter import decode_adapter, encode_adapter, genesis_adapter
from sterna_protocol.merge.codec import decode_delta, encode_delta, quantise
from sterna_protocol.merge.feedback import Unsent
from sterna_protocol.merge.rules import merge
from sterna_protocol.merge.scheme import delta_size
from sterna_protocol.node import Node
from sterna_protocol.swarm.charter import Charter
from sterna_protocol.wire.chunks import blob_digest
from sterna_protocol.wire.messages import Figures, Signed, decode_frame
from tests.support.charters import key, small_charter
from tests.support.switchboard import MemoryJournal, Switchboard

PEERS = (1, 2, 3)
FIGURES = Figures(loss_before_micronats=2, loss_after_micronats=1, steps=1, tokens=8, milliseconds=1)


class NoisyTrainer:
    """Its deltas are noise that follows from peer and round."""

    def __init__(self, charter: Charter, number: int) -> None:
        self.charter = charter
        self.number = number
        self.trained: list[int] = []

    async def train(self, round_: int, adapter: bytes, unsent: Unsent | None) -> LocalDelta:
        self.trained.append(round_)
        noise = np.random.default_rng((self.number, round_)).normal(0, 0.01, delta_size(self.charter.adapter))
        delta = quantise(noise.astype(np.float32), self.charter.codec)
        blob = encode_delta(self.charter, author=key(self.number).peer, round_=round_, delta=delta)
        return LocalDelta(blob, FIGURES)


class BrokenTrainer:
    async def train(self, round_: int, adapter: bytes, unsent: Unsent | None) -> LocalDelta:
        raise WorkerFailed("the training process ended by signal 9")


def make_driver(
    board: Switchboard,
    charter: Charter,
    number: int,
    *,
    trainer: NoisyTrainer | BrokenTrainer | None = None,
    journal: MemoryJournal | None = None,
    until_round: int = 2,
    gate: Gate | None = None,
) -> Driver:
    genesis = encode_adapter(charter, genesis_adapter(charter))
    journal = journal or MemoryJournal()
    journal.blobs[blob_digest(genesis)] = genesis
    node = Node(
        charter,
        key(number),
        trains=True,
        now=time.monotonic(),
        genesis_adapter=blob_digest(genesis),
        certificates=journal.certificates,
        own_frames=list(journal.frames.values()),
    )
    peer = key(number).peer
    driver = Driver(
        charter=charter,
        node=node,
        network=board.line(peer),
        trainer=trainer or NoisyTrainer(charter, number),
        journal=journal,
        clock=time.monotonic,
        rng=random.Random(number),
        activity=Activity(),
        until_round=until_round,
        gate=gate,
    )
    board.plug_in(peer, driver, journal)
    return driver


@asynccontextmanager
async def running(board: Switchboard, drivers: Iterable[Driver]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(driver.run()) for driver in drivers]
    await asyncio.sleep(0)
    board.connect_all()
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def until_closed(drivers: Sequence[Driver], round_: int) -> None:
    while any(len(driver.closed_rounds) < round_ for driver in drivers):
        await asyncio.sleep(0)


@pytest.fixture
def charter() -> Charter:
    return small_charter(min_deltas=3)


@pytest.mark.asyncio
async def test_three_peers_certify_what_anybody_recomputes(charter: Charter) -> None:
    board = Switchboard()
    drivers = [make_driver(board, charter, number) for number in PEERS]
    async with running(board, drivers):
        await until_closed(drivers, 2)
    heads = {driver.node.head_adapter for driver in drivers}
    assert len(heads) == 1
    adapter = genesis_adapter(charter)
    blobs = {digest: blob for journal in board.journals.values() for digest, blob in journal.blobs.items()}
    for certificate in board.journals[key(1).peer].certificates:
        deltas = [
            (
                entry,
                decode_delta(
                    charter, author=entry.author, round_=entry.trained_round, data=blobs[entry.delta]
                ),
            )
            for entry in certificate.decision.entries
        ]
        assert len(deltas) == len(PEERS)
        adapter = merge(charter, adapter, deltas, certificate.round_)
    assert heads == {blob_digest(encode_adapter(charter, adapter))}
    assert decode_adapter(charter, blobs[heads.pop()]).state.any()


@pytest.mark.asyncio
async def test_what_a_node_signs_is_on_the_disk_before_anybody_sees_it(charter: Charter) -> None:
    board = Switchboard()
    drivers = [make_driver(board, charter, number) for number in PEERS]
    async with running(board, drivers):
        await until_closed(drivers, 2)
    signed = 0
    for author, frame, on_disk in board.published:
        message = decode_frame(frame)
        if isinstance(message, Signed) and message.author == author:
            signed += 1
            assert on_disk[message.round_, message.attempt, message.kind] == frame
    assert signed > 2 * len(PEERS)


class SlowDisk(MemoryJournal):
    """Its first own message takes until ``released``."""

    def __init__(self) -> None:
        super().__init__()
        self.released = asyncio.Event()
        self.waiting = asyncio.Event()

    async def put_own(self, round_: int, attempt: int, kind: int, frame: bytes) -> None:
        self.waiting.set()
        await self.released.wait()
        await super().put_own(round_, attempt, kind, frame)


@pytest.mark.asyncio
async def test_no_answer_shows_a_message_that_is_not_on_the_disk_yet(charter: Charter) -> None:
    board = Switchboard()
    disk = SlowDisk()
    driver = make_driver(board, charter, 1, journal=disk)
    async with running(board, [driver]):
        await disk.waiting.wait()
        await driver.answer(key(2).peer, 7, driver.node.heads())
        for _ in range(20):
            await asyncio.sleep(0)
        assert board.responses == []
        disk.released.set()
        while not board.responses:
            await asyncio.sleep(0)
    assert [number for number, _ in board.responses] == [7]
    assert disk.frames


@pytest.mark.asyncio
async def test_a_node_that_cannot_train_says_so_and_follows(charter: Charter) -> None:
    charter = small_charter(min_deltas=2, train_milliseconds=50)
    board = Switchboard()
    drivers = [make_driver(board, charter, number) for number in (1, 2)]
    broken = make_driver(board, charter, 3, trainer=BrokenTrainer())
    async with running(board, [*drivers, broken]):
        await until_closed([*drivers, broken], 1)
    assert broken.activity.trouble == "the training process ended by signal 9"
    assert broken.node.head_adapter == drivers[0].node.head_adapter
    assert broken.closed_rounds[0]["slate_size"] == 2


@pytest.mark.asyncio
async def test_a_delta_trained_before_a_crash_is_announced_and_not_trained_again(charter: Charter) -> None:
    journal = MemoryJournal()
    trainer = NoisyTrainer(charter, 1)
    alone = Switchboard()
    first = make_driver(alone, charter, 1, trainer=trainer, journal=journal)
    async with running(alone, [first]):
        while journal.kept is None:
            await asyncio.sleep(0)
    assert trainer.trained == [1]
    board = Switchboard()
    drivers = [
        make_driver(board, charter, 1, trainer=trainer, journal=journal, until_round=1),
        *(make_driver(board, charter, number, until_round=1) for number in (2, 3)),
    ]
    async with running(board, drivers):
        await until_closed(drivers, 1)
    assert trainer.trained == [1]
    assert journal.rounds[0]["included"] is True


@pytest.mark.asyncio
async def test_garbage_costs_its_sender_and_nothing_else(charter: Charter) -> None:
    board = Switchboard()
    drivers = [make_driver(board, charter, number) for number in PEERS]
    async with running(board, drivers):
        for frame in (b"", b"\x01garbage", b"\x06" + bytes(100), b"\xff" * 20_000):
            await drivers[0].gossip(key(9).peer, frame)
        await until_closed(drivers, 2)
    assert [peer for peer, _ in board.penalties] == [key(9).peer] * 4


@pytest.mark.asyncio
async def test_a_peer_that_comes_late_catches_up_with_the_chain(charter: Charter) -> None:
    board = Switchboard()
    drivers = [make_driver(board, charter, number) for number in PEERS]
    async with running(board, drivers):
        await until_closed(drivers, 2)
        late = make_driver(board, charter, 4)
        async with running(board, [late]):
            await until_closed([late], 2)
            while not board.journals[key(4).peer].has_blob(late.node.head_adapter):
                await asyncio.sleep(0)
    assert late.node.head_adapter == drivers[0].node.head_adapter
    assert [certificate.round_ for certificate in board.journals[key(4).peer].certificates] == [1, 2]


class HeedfulTrainer(NoisyTrainer):
    """Keeps what it is told to send along, and has something left itself."""

    def __init__(self, charter: Charter, number: int) -> None:
        super().__init__(charter, number)
        self.told: list[Unsent | None] = []

    async def train(self, round_: int, adapter: bytes, unsent: Unsent | None) -> LocalDelta:
        self.told.append(unsent)
        local = await super().train(round_, adapter, unsent)
        return LocalDelta(local.blob, local.figures, b"total of %d" % round_)


@pytest.mark.asyncio
@pytest.mark.parametrize("codec", ["top2", "ternary"])
async def test_only_a_sparse_codec_is_fed_back_what_it_left_out(codec: str) -> None:
    charter = small_charter(min_deltas=3, codec=codec)
    board, journal, trainer = Switchboard(), MemoryJournal(), HeedfulTrainer(charter, 1)
    journal.left = Unsent(0, b"left", None)
    drivers = [
        make_driver(board, charter, 1, trainer=trainer, journal=journal),
        *(make_driver(board, charter, number) for number in (2, 3)),
    ]
    async with running(board, drivers):
        await until_closed(drivers, 2)
    assert trainer.told == [journal.left if codec == "top2" else None] * 2
    assert journal.kept is not None
    assert journal.kept[3].total == b"total of 2"


@pytest.mark.asyncio
async def test_an_adapter_that_the_own_text_speaks_against_is_trained_from_and_not_served() -> None:
    charter = small_charter(min_deltas=3)
    board, journal = Switchboard(), MemoryJournal()
    genesis = encode_adapter(charter, genesis_adapter(charter))
    order: list[str] = []

    async def judge(adapter: bytes) -> float:
        order.append("judged")
        certified = [made.decision.adapter for made in journal.certificates]
        return 9.0 if blob_digest(adapter) in certified[1:2] else 3.0

    class Watched(NoisyTrainer):
        async def train(self, round_: int, adapter: bytes, unsent: Unsent | None) -> LocalDelta:
            order.append(f"trained {round_} from {blob_digest(adapter).hex()}")
            return await super().train(round_, adapter, unsent)

    gate = Gate(journal, judge, base=genesis)
    first = make_driver(
        board, charter, 1, trainer=Watched(charter, 1), journal=journal, until_round=3, gate=gate
    )
    drivers = [first, *(make_driver(board, charter, number, until_round=3) for number in (2, 3))]
    async with running(board, drivers):
        await until_closed(drivers, 2)
        while gate.newest is None or gate.newest.round_ < 2:
            await asyncio.sleep(0)
        assert gate.is_holding_back
        assert gate.served is not None
        assert gate.served.adapter == journal.certificates[0].decision.adapter
        await until_closed(drivers, 3)
        while gate.newest.round_ < 3:
            await asyncio.sleep(0)
    assert not gate.is_holding_back
    bad = journal.certificates[1].decision.adapter
    trained = order.index(f"trained 3 from {bad.hex()}")
    assert order[:trained].count("judged") == 4
