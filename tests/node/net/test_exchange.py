"""Pulling blobs over streams in memory, in virtual time."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from sterna.errors import StorageError, Unreachable
from sterna.net import exchange, serve
from sterna.net.blobs import path_of
from sterna.net.exchange import REQUEST, RESPONSE, Kind, Status
from sterna.net.serve import BlobServer
from sterna.net.streams import Lost, Misbehaved, Stream, read_exactly
from sterna_protocol.wire.chunks import CHUNK_BYTES, LeafList, blob_digest
from sterna_protocol.wire.limits import MAX_BLOB_BYTES
from tests.node.net.memory import MemoryStream, pair

Serve = Callable[[bytes, Stream], Awaitable[None]]

US = b"u" * 32
SIZE = 5 * CHUNK_BYTES + 77
DATA = b"".join(i.to_bytes(4, "big") for i in range(SIZE // 4 + 1))[:SIZE]
DIGEST = blob_digest(DATA)


def virtual(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test on a clock that jumps to the next deadline."""

    def run(tmp_path: Path) -> None:
        # Threads do real work in no virtual time, so the clock waits a moment for them before it jumps.
        trio.run(test, tmp_path, clock=trio.testing.MockClock(autojump_threshold=0.05))

    run.__name__ = test.__name__
    return run


def put(folder: Path, data: bytes) -> bytes:
    digest = blob_digest(data)
    path = path_of(folder, digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return digest


class Peers:
    """A network of handlers by name; opens streams to them."""

    def __init__(self, nursery: trio.Nursery, **handlers: Serve) -> None:
        self._nursery = nursery
        self._handlers = {name.ljust(32).encode(): handler for name, handler in handlers.items()}
        self.names = list(self._handlers)
        self.lies: list[bytes] = []
        self.opened: list[bytes] = []

    async def open(self, peer: bytes) -> Stream:
        self.opened.append(peer)
        if peer not in self._handlers:
            raise Lost("not connected")
        ours, theirs = pair()

        async def run() -> None:
            with contextlib.suppress(Lost, Misbehaved):
                await self._handlers[peer](US, theirs)
            await theirs.reset()

        self._nursery.start_soon(run)
        return ours

    async def fetch(
        self, folder: Path, *, digest: bytes = DIGEST, size: int = SIZE, seconds: float = 60.0
    ) -> Path:
        return await exchange.fetch(
            digest,
            size,
            peers=self.names,
            folder=folder,
            open_stream=self.open,
            lied=lambda peer, why: self.lies.append(peer.strip()),
            seconds=seconds,
        )


@contextlib.asynccontextmanager
async def peers(**handlers: Serve) -> AsyncIterator[Peers]:
    async with trio.open_nursery() as nursery:
        yield Peers(nursery, **handlers)
        nursery.cancel_scope.cancel()


def honest(folder: Path, data: bytes = DATA) -> Serve:
    put(folder, data)
    return BlobServer(folder).serve


def answering(change: Callable[[int, int, bytes], tuple[int, int, bytes]]) -> Serve:
    """A peer that has the blob; ``change(kind, index, bytes)`` gives status, announced length and bytes."""
    leaves = LeafList.of(DATA).encode()

    async def handler(_peer: bytes, stream: Stream) -> None:
        while True:
            kind, _, index = REQUEST.unpack(await read_exactly(stream, REQUEST.size, seconds=1e9))
            whole = leaves if kind == Kind.LEAVES else DATA
            piece = whole[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
            status, length, data = change(kind, index, piece)
            await stream.write(RESPONSE.pack(status, length) + data)

    return handler


def true(_kind: int, _index: int, piece: bytes) -> tuple[int, int, bytes]:
    return Status.HERE, len(piece), piece


@virtual
async def test_a_blob_arrives_whole_and_under_its_name(tmp_path):
    async with peers(alice=honest(tmp_path / "a")) as net:
        path = await net.fetch(tmp_path / "us")
    assert path == path_of(tmp_path / "us", DIGEST)
    assert path.read_bytes() == DATA
    assert [p.name for p in path.parent.iterdir()] == [DIGEST.hex()]


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1])
def test_sizes_around_a_chunk_arrive_whole(tmp_path, size):
    async def test(folder):
        data = DATA[:size]
        async with peers(alice=honest(folder / "a", data)) as net:
            path = await net.fetch(folder / "us", digest=blob_digest(data), size=size)
        assert path.read_bytes() == data

    virtual(test)(tmp_path)


@virtual
async def test_what_we_have_is_not_asked_for(tmp_path):
    put(tmp_path, DATA)
    async with peers() as net:
        assert (await net.fetch(tmp_path)).read_bytes() == DATA
    assert net.opened == []


@virtual
async def test_a_liar_among_the_peers_is_named_and_its_bytes_are_never_kept(tmp_path):
    def lie(kind, index, piece):
        return Status.HERE, len(piece), bytes(len(piece)) if kind == Kind.CHUNK else piece

    async with peers(liar=answering(lie), alice=answering(true)) as net:
        path = await net.fetch(tmp_path)
    assert path.read_bytes() == DATA
    assert net.lies == [b"liar"]


@virtual
async def test_a_liar_alone_gives_nothing(tmp_path):
    def lie(kind, index, piece):
        return Status.HERE, len(piece), piece if (kind, index) != (Kind.CHUNK, 3) else b"x" * len(piece)

    async with peers(liar=answering(lie)) as net:
        with pytest.raises(Unreachable, match="lied"):
            await net.fetch(tmp_path)
    assert net.lies == [b"liar"]
    assert not path_of(tmp_path, DIGEST).exists()


@virtual
async def test_a_false_leaf_list_is_a_lie(tmp_path):
    def lie(kind, index, piece):
        return Status.HERE, len(piece), piece[:-1] + b"!" if kind == Kind.LEAVES else piece

    async with peers(liar=answering(lie), alice=answering(true)) as net:
        assert (await net.fetch(tmp_path)).read_bytes() == DATA
    assert net.lies == [b"liar"]


@pytest.mark.parametrize("announced", [CHUNK_BYTES + 1, 2**32 - 1, 0])
def test_a_wrong_length_is_refused_before_its_bytes_arrive(tmp_path, announced):
    def lie(kind, index, piece):
        return (Status.HERE, announced, b"") if kind == Kind.CHUNK else (Status.HERE, len(piece), piece)

    async def test(folder):
        async with peers(liar=answering(lie)) as net:
            start = trio.current_time()
            with pytest.raises(Unreachable, match=f"{announced} bytes announced"):
                await net.fetch(folder)
            assert trio.current_time() - start < exchange.CHUNK_SECONDS
        assert net.lies == [b"liar"]

    virtual(test)(tmp_path)


@virtual
async def test_a_peer_that_breaks_off_is_asked_again_and_is_no_liar(tmp_path):
    times = 0

    async def flaky(peer, stream):
        nonlocal times
        times += 1
        served = 0

        def some(kind, index, piece):
            nonlocal served
            served += 1
            if served > 3:
                raise Lost("cable cut")
            return true(kind, index, piece)

        await answering(some)(peer, stream)

    async with peers(flaky=flaky) as net:
        assert (await net.fetch(tmp_path)).read_bytes() == DATA
    assert times > 1
    assert net.lies == []


@virtual
async def test_a_truncating_peer_is_left_for_another(tmp_path):
    def cut(kind, index, piece):
        return Status.HERE, len(piece), piece[:-1]

    async with peers(cutter=answering(cut), alice=answering(true)) as net:
        assert (await net.fetch(tmp_path)).read_bytes() == DATA
    assert net.lies == []


@virtual
async def test_the_last_chunks_do_not_wait_for_a_slow_peer(tmp_path):
    def piece_of(kind: int, index: int) -> bytes:
        whole = LeafList.of(DATA).encode() if kind == Kind.LEAVES else DATA
        return whole[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]

    async def at_pace(stream: Stream, chunk_seconds: float, first_seconds: float) -> None:
        await trio.sleep(first_seconds)
        while True:
            kind, _, index = REQUEST.unpack(await read_exactly(stream, REQUEST.size, seconds=1e9))
            if kind == Kind.CHUNK:
                await trio.sleep(chunk_seconds)
            data = piece_of(kind, index)
            await stream.write(RESPONSE.pack(Status.HERE, len(data)) + data)

    # The slow one is first to the chunks and takes a pipeline of them; the quick one comes later.
    async def slow(_peer: bytes, stream: Stream) -> None:
        await at_pace(stream, 20, 0)

    async def quick(_peer: bytes, stream: Stream) -> None:
        await at_pace(stream, 0, 1)

    async with peers(slow=slow, quick=quick) as net:
        start = trio.current_time()
        assert (await net.fetch(tmp_path)).read_bytes() == DATA
        assert trio.current_time() - start < 20


@virtual
async def test_silent_peers_cost_the_timeout_and_no_more(tmp_path):
    async def silent(peer, stream):
        await trio.sleep_forever()

    async with peers(silent=silent, mute=silent) as net:
        start = trio.current_time()
        with pytest.raises(Unreachable):
            await net.fetch(tmp_path, seconds=45)
        assert trio.current_time() - start == pytest.approx(45, abs=0.5)


@virtual
async def test_peers_without_the_blob_fail_at_once(tmp_path):
    async with peers(alice=honest(tmp_path / "a", b"other")) as net:
        start = trio.current_time()
        with pytest.raises(Unreachable, match="does not have it"):
            await net.fetch(tmp_path / "us")
        assert trio.current_time() - start < 1


@virtual
async def test_a_second_fetch_starts_from_the_chunks_of_the_first(tmp_path):
    asked: list[int] = []

    def three_only(kind, index, piece):
        if kind == Kind.CHUNK and index >= 3:
            return Status.NOT_HERE, 0, b""
        return true(kind, index, piece)

    def counted(kind, index, piece):
        if kind == Kind.CHUNK:
            asked.append(index)
        return true(kind, index, piece)

    async with peers(poor=answering(three_only)) as net:
        with pytest.raises(Unreachable, match="3 of 6 chunks missing"):
            await net.fetch(tmp_path)
    async with peers(alice=answering(counted)) as net:
        assert (await net.fetch(tmp_path)).read_bytes() == DATA
    assert sorted(asked) == [3, 4, 5]


@virtual
async def test_damage_in_a_partial_file_is_found_and_repaired(tmp_path):
    partial = path_of(tmp_path, DIGEST).with_name(DIGEST.hex() + ".partial")
    partial.parent.mkdir(parents=True)
    partial.write_bytes(DATA[:CHUNK_BYTES] + b"?" + DATA[CHUNK_BYTES + 1 :] + b"tail that is too long")
    async with peers(alice=answering(true)) as net:
        assert (await net.fetch(tmp_path)).read_bytes() == DATA


@virtual
async def test_a_full_disk_is_our_trouble_and_nobody_lied(tmp_path):
    (tmp_path / DIGEST.hex()[:2]).write_text("a file where the folder should be")
    async with peers(alice=answering(true)) as net:
        with pytest.raises(StorageError):
            await net.fetch(tmp_path)
    assert net.lies == []


@virtual
async def test_a_size_over_the_limit_is_refused(tmp_path):
    async with peers() as net:
        with pytest.raises(ValueError, match="limit"):
            await net.fetch(tmp_path, size=MAX_BLOB_BYTES + 1)


async def _ask(stream: MemoryStream, kind: int, digest: bytes, index: int) -> tuple[int, bytes]:
    await stream.write(REQUEST.pack(kind, digest, index))
    status, length = RESPONSE.unpack(await read_exactly(stream, RESPONSE.size, seconds=5))
    return status, await read_exactly(stream, length, seconds=5) if length else b""


@virtual
async def test_a_server_answers_what_it_has_and_says_what_it_has_not(tmp_path):
    server = honest(tmp_path)
    async with peers(server=server) as net:
        stream = await net.open(net.names[0])
        assert await _ask(stream, Kind.LEAVES, DIGEST, 0) == (Status.HERE, LeafList.of(DATA).encode())
        assert await _ask(stream, Kind.CHUNK, DIGEST, 5) == (Status.HERE, DATA[5 * CHUNK_BYTES :])
        for kind, digest, index in [
            (Kind.LEAVES, DIGEST, 1),
            (Kind.CHUNK, DIGEST, 6),
            (Kind.CHUNK, DIGEST, 2**32 - 1),
            (Kind.CHUNK, bytes(32), 0),
            (Kind.LEAVES, bytes(32), 0),
        ]:
            assert await _ask(stream, kind, digest, index) == (Status.NOT_HERE, b"")


@virtual
async def test_a_damaged_blob_is_not_served(tmp_path):
    server = honest(tmp_path)
    path_of(tmp_path, DIGEST).write_bytes(DATA[:-1] + b"?")
    async with peers(server=server) as net:
        stream = await net.open(net.names[0])
        assert await _ask(stream, Kind.LEAVES, DIGEST, 0) == (Status.NOT_HERE, b"")
        assert await _ask(stream, Kind.CHUNK, DIGEST, 0) == (Status.NOT_HERE, b"")


@virtual
async def test_a_blob_damaged_while_it_is_served_is_not_served_on(tmp_path):
    server = honest(tmp_path)
    async with peers(server=server) as net:
        stream = await net.open(net.names[0])
        assert (await _ask(stream, Kind.CHUNK, DIGEST, 0))[0] == Status.HERE
        path_of(tmp_path, DIGEST).write_bytes(b"?" + DATA[1:])
        assert await _ask(stream, Kind.CHUNK, DIGEST, 0) == (Status.NOT_HERE, b"")
        assert (await _ask(stream, Kind.CHUNK, DIGEST, 1))[0] == Status.HERE


@virtual
async def test_a_request_of_an_unknown_kind_is_an_offence(tmp_path):
    ours, theirs = pair()
    await ours.write(REQUEST.pack(9, DIGEST, 0))
    with pytest.raises(Misbehaved, match="kind 9"):
        await BlobServer(tmp_path).serve(US, theirs)


@virtual
async def test_a_third_stream_of_one_peer_is_told_to_come_back(tmp_path):
    server = honest(tmp_path)
    async with peers(server=server) as net:
        streams = [await net.open(net.names[0]) for _ in range(serve.STREAMS_PER_PEER)]
        for stream in streams:
            assert (await _ask(stream, Kind.CHUNK, DIGEST, 0))[0] == Status.HERE
        late = await net.open(net.names[0])
        status, _ = RESPONSE.unpack(await read_exactly(late, RESPONSE.size, seconds=5))
        assert status == Status.BUSY
        await streams[0].reset()
        await trio.testing.wait_all_tasks_blocked()
        again = await net.open(net.names[0])
        assert (await _ask(again, Kind.CHUNK, DIGEST, 0))[0] == Status.HERE


@virtual
async def test_a_stream_without_requests_is_dropped_after_a_minute(tmp_path):
    _, theirs = pair()
    start = trio.current_time()
    with pytest.raises(Lost):
        await BlobServer(tmp_path).serve(US, theirs)
    assert trio.current_time() - start == pytest.approx(serve.IDLE_SECONDS, abs=0.1)
