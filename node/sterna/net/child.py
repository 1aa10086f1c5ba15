"""The network process: ``python -m sterna.net.child FD``. It owns nothing; it can be killed at any time.

One nursery tree: the pipe's two ends, the host, gossip, one ping task per peer, one task per call.
"""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import trio

from sterna.errors import ConfigError, StorageError, Unreachable
from sterna.framing import PipeError
from sterna.net.events import (
    Gossip,
    Listening,
    NetEvent,
    PeerBanned,
    PeerConnected,
    PeerDisconnected,
    PeerLied,
    Request,
)
from sterna.net.pipe import Frames, pack
from sterna.net.quiet import set_up_logging, unmute
from sterna.net.score import BAN_SECONDS, Offence, Scores

logger = logging.getLogger(__name__)

MAX_OUTGOING = 1024
"""Messages that wait for the core to read: 16 MiB of gossip. More gossip is dropped, the rest waits."""

STACK_BYTES = 1024 * 1024
"""Of each helper thread. The system's 8 MiB are address space, which is limited here."""

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Config:
    """What the core sends first."""

    identity_seed: bytes
    network_key: bytes
    listen: list[str]
    bootstrap: list[str]
    redial: list[str]
    topic: str
    blobs: str
    address_space_mib: int
    parent: int
    log_level: int


class Link:
    """The child's end of the pipe."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._frames = Frames()
        self._ready: list[list[object]] = []
        self._send, self._outgoing = trio.open_memory_channel[bytes](MAX_OUTGOING)
        self.dropped = 0

    async def receive(self) -> list[Any] | None:
        """The next message of the core; None when it has gone."""
        while not self._ready:
            try:
                data = await self._stream.receive_some(65536)
            except trio.BrokenResourceError:
                return None
            if not data:
                return None
            self._ready.extend(self._frames.feed(data))
        return self._ready.pop(0)

    async def send(self, message: list[object]) -> None:
        await self._send.send(pack(message))

    async def emit(self, event: NetEvent) -> None:
        await self.send(["event", type(event).__name__, list(astuple(event))])

    def emit_or_drop(self, event: NetEvent) -> None:
        """For what the core can ask for again."""
        try:
            self._send.send_nowait(pack(["event", type(event).__name__, list(astuple(event))]))
        except trio.WouldBlock:
            self.dropped += 1

    async def write(self) -> None:
        """Hand messages to the core until it goes."""
        async for frame in self._outgoing:
            try:
                await self._stream.send_all(frame)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return

    async def last_words(self, message: list[object]) -> None:
        with trio.move_on_after(1):
            await self._stream.send_all(pack(message))


async def run(descriptor: int) -> None:
    link = Link(trio.SocketStream(trio.socket.from_stdlib_socket(socket.socket(fileno=descriptor))))
    first = await link.receive()
    if first is None:
        return
    config = Config(**first[1])
    if os.getppid() != config.parent:
        return
    logging.getLogger("sterna").setLevel(config.log_level)
    limit_memory(config.address_space_mib)
    # The library is imported under the limit, and only by a process that has something to do.
    from sterna.net.host import open_host, parse_address

    unmute("libp2p")
    scores = Scores()
    offences_send, offences = trio.open_memory_channel[tuple[bytes, int, str]](256)

    def blame(peer: bytes, offence: Offence, why: str) -> None:
        try:
            offences_send.send_nowait((peer, offence, why))
        except trio.WouldBlock:
            logger.warning("offence.dropped", extra={"peer": peer[:4].hex()})

    try:
        for address in config.bootstrap:
            try:
                parse_address(address)
            except ValueError as wrong:
                raise ConfigError(f"bootstrap: {wrong}") from wrong
        async with open_host(
            seed=config.identity_seed,
            listen=config.listen,
            network_key=config.network_key,
            admit=lambda peer: not scores.is_banned(peer, trio.current_time()),
            blame=blame,
        ) as host:
            await _serve(config, link, host, scores, blame, offences)
    except* ConfigError as wrong:
        await link.last_words(["fatal", "config", str(_leaf(wrong))])


async def _serve(
    config: Config,
    link: Link,
    host: Any,
    scores: Scores,
    blame: Callable[[bytes, Offence, str], None],
    offences: trio.MemoryReceiveChannel[tuple[bytes, int, str]],
) -> None:
    from sterna.net import discovery, exchange, sync
    from sterna.net.gossip import open_gossip
    from sterna.net.liveness import Redialler, keep_alive
    from sterna.net.serve import BlobServer

    def deliver_gossip(author: bytes, data: bytes) -> None:
        link.emit_or_drop(Gossip(author, data))

    async def deliver_request(peer: bytes, request_id: int, data: bytes) -> None:
        await link.emit(Request(peer, request_id, data))

    async with (
        open_gossip(host, topic=config.topic, deliver=deliver_gossip, blame=blame) as gossip,
        trio.open_nursery() as nursery,
    ):
        redialler = Redialler(host, nursery)

        async def connected(peer: bytes, address: str) -> None:
            logger.info("peer.connected", extra={"peer": peer[:4].hex(), "address": address})
            nursery.start_soon(keep_alive, host, peer)
            await link.emit(PeerConnected(peer, address))

        async def disconnected(peer: bytes) -> None:
            logger.info("peer.disconnected", extra={"peer": peer[:4].hex()})
            redialler.lost()
            await link.emit(PeerDisconnected(peer))

        async def judge() -> None:
            async for peer, points, why in offences:
                logger.info("peer.offence", extra={"peer": peer[:4].hex(), "points": points, "why": why})
                if scores.add(peer, points, trio.current_time()):
                    nursery.start_soon(ban, peer)

        async def ban(peer: bytes) -> None:
            logger.warning("peer.banned", extra={"peer": peer[:4].hex(), "seconds": BAN_SECONDS})
            gossip.refuse(peer)
            await host.drop(peer)
            await link.emit(PeerBanned(peer, BAN_SECONDS))
            await trio.sleep(BAN_SECONDS)
            gossip.accept(peer)

        host.on_change(connected, disconnected)
        blob_server = BlobServer(Path(config.blobs))
        sync_server = sync.SyncServer(deliver_request)
        host.handle(exchange.PROTOCOL, blob_server.serve)
        host.handle(sync.PROTOCOL, sync_server.serve)
        finder = discovery.Discovery(host)
        host.handle(discovery.PROTOCOL, finder.serve)
        nursery.start_soon(link.write)
        nursery.start_soon(judge)
        calls = Calls(config, link, host, gossip, sync_server, redialler, blame)
        await link.send(["bound", list(host.bound)])
        await link.emit(Listening(host.addresses))
        redialler.want(config.bootstrap, for_ever=True)
        redialler.want(config.redial, for_ever=False)
        nursery.start_soon(finder.run)
        while (message := await link.receive()) is not None:
            match message:
                case ["call", int(call_id), str(operation), list(arguments)]:
                    nursery.start_soon(calls.answer, call_id, operation, arguments)
                case ["cancel", int(call_id)]:
                    calls.cancel(call_id)
                case _:
                    raise PipeError(f"unknown message {message[:1]!r}")
        nursery.cancel_scope.cancel()


class Calls:
    """The operations the core may ask for; each runs in its own task."""

    def __init__(
        self,
        config: Config,
        link: Link,
        host: Any,
        gossip: Any,
        sync_server: Any,
        redialler: Any,
        blame: Callable[[bytes, Offence, str], None],
    ) -> None:
        self._config = config
        self._link = link
        self._host = host
        self._gossip = gossip
        self._sync = sync_server
        self._redialler = redialler
        self._blame = blame
        self._fetching: dict[bytes, trio.Lock] = {}
        self._asking: dict[bytes, trio.Semaphore] = {}
        self._running: dict[int, trio.CancelScope] = {}
        self._operations: dict[str, Callable[..., Awaitable[object]]] = {
            "publish": self.publish,
            "request": self.request,
            "respond": self.respond,
            "fetch": self.fetch,
            "dial": self.dial,
            "penalise": self.penalise,
            "known_addresses": self.known_addresses,
        }

    async def answer(self, call_id: int, operation: str, arguments: list[Any]) -> None:
        from sterna.net.streams import Lost, Misbehaved

        try:
            with trio.CancelScope() as scope:
                self._running[call_id] = scope
                value = await self._operations[operation](*arguments)
            if scope.cancelled_caught:
                return
        except (Unreachable, Lost, Misbehaved) as error:
            await self._link.send(["fail", call_id, "unreachable", str(error)])
        except StorageError as error:
            await self._link.send(["fail", call_id, "storage", str(error)])
        except ValueError as error:
            await self._link.send(["fail", call_id, "value", str(error)])
        else:
            await self._link.send(["done", call_id, value])
        finally:
            self._running.pop(call_id, None)

    def cancel(self, call_id: int) -> None:
        """Stop working on a call; it is not answered."""
        if call_id in self._running:
            self._running[call_id].cancel()

    async def publish(self, data: bytes) -> None:
        await self._gossip.publish(data)

    async def request(self, peer: bytes, data: bytes, seconds: float) -> bytes:
        from sterna.net import sync
        from sterna.net.streams import Misbehaved

        # The peer resets more than it lets wait, so the rest of a burst waits here.
        turn = self._asking.setdefault(peer, trio.Semaphore(sync.MAX_PENDING_PER_PEER))
        with trio.move_on_after(seconds):
            async with turn:
                stream = await self._host.open(peer, sync.PROTOCOL)
                try:
                    return await sync.ask(stream, data, seconds=seconds)
                except Misbehaved as offence:
                    self._blame(peer, Offence.MALFORMED, str(offence))
                    raise
                finally:
                    await stream.reset()
                    if turn.value == sync.MAX_PENDING_PER_PEER - 1:
                        self._asking.pop(peer, None)
        raise Unreachable(f"no answer of {peer[:4].hex()} within {seconds:g} s")

    async def respond(self, request_id: int, data: bytes) -> None:
        self._sync.respond(request_id, data)

    async def fetch(self, digest: bytes, size: int, peers: list[bytes], seconds: float) -> str:
        from sterna.net import exchange

        def lied(peer: bytes, why: str) -> None:
            self._blame(peer, Offence.LIED, why)
            self._link.emit_or_drop(PeerLied(peer, digest))

        async def open_stream(peer: bytes) -> Any:
            return await self._host.open(peer, exchange.PROTOCOL)

        # Two fetches of one blob would write one file; the second finds the first one's result.
        lock = self._fetching.setdefault(digest, trio.Lock())
        start = trio.current_time()
        with trio.move_on_after(seconds):
            async with lock:
                try:
                    return str(
                        await exchange.fetch(
                            digest,
                            size,
                            peers=peers,
                            folder=Path(self._config.blobs),
                            open_stream=open_stream,
                            lied=lied,
                            # The inner clock ends first, for its error says what was missing.
                            seconds=max(0.0, seconds - (trio.current_time() - start)) * 0.98,
                        )
                    )
                finally:
                    if not lock.statistics().tasks_waiting:
                        self._fetching.pop(digest, None)
        raise Unreachable(f"blob {digest.hex()[:8]}: not complete within {seconds:g} s")

    async def dial(self, address: str) -> bytes:
        peer: bytes = await self._host.dial(address)
        self._redialler.want([address], for_ever=False)
        return peer

    async def known_addresses(self) -> list[list[object]]:
        known = [(peer, self._host.known_addresses(peer)) for peer in self._host.peers()]
        return [[peer, addresses] for peer, addresses in known if addresses]

    async def penalise(self, peer: bytes, points: int) -> None:
        self._blame(peer, points, "core")  # type: ignore[arg-type]


def limit_memory(mib: int) -> None:
    """What peers can still make the library buffer ends this process, not the machine."""
    size = mib * 1024 * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    import threading

    threading.stack_size(STACK_BYTES)


def die_with_parent() -> None:
    # Covers a core that is killed while this process is too busy to read its pipe.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def main() -> None:
    die_with_parent()
    # Ctrl-C in a terminal reaches the whole process group; the core decides when we end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_up_logging()
    code = 1
    try:
        trio.run(run, int(sys.argv[1]))
        code = 0
    except PipeError as broken:
        logger.error("pipe.broken", extra={"why": str(broken)})
    except BaseException:  # the last border: say why, then end
        logger.exception("process.failed")
    # The library leaves threads behind that nothing stops; there is nothing to save.
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
