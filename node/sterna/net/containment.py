"""What a peer makes fail stays a failure of that peer: of one task, or of one stream."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import trio
from libp2p.io.exceptions import IOException, MsgioException
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedConnError, MuxedStreamError

from sterna.net.score import Offence

logger = logging.getLogger(__name__)

Blame = Callable[[ID, Offence, str], None]
"""Told who did what; must not raise."""


def contain(manager: Any, service: str) -> None:
    """A task of this service that raises is logged instead of ending the whole service.

    Cures: tools/anyio_service/trio_manager.py:385 cancels the service, which ends the process, for any
    exception in any task, among them tasks that work on one message of one peer.
    """
    run_task = manager.run_task

    def guarded_run_task(
        fn: Any, *args: Any, daemon: bool = False, name: str | None = None, _internal: bool = False
    ) -> None:
        if daemon or _internal:
            run_task(fn, *args, daemon=daemon, name=name, _internal=_internal)
            return

        async def contained(*inner: Any) -> None:
            try:
                await fn(*inner)
            except Exception as error:  # noqa: BLE001  the border between a peer's bytes and our process
                note(f"{service}.{getattr(fn, '__name__', 'task')}", error)

        run_task(contained, *args, name=name or getattr(fn, "__name__", None))

    manager.run_task = guarded_run_task


def guard_streams(host: Any, blame: Blame) -> None:
    """A stream handler that raises resets its stream, and every handled stream is closed on our side.

    Cures: handlers share the connection's nursery (swarm_connection.py:271) and only MultiselectError is
    caught (basic_host.py:1530), so one exception ends the process; and the gossip handler forgets to close
    its stream.
    """
    handle = host._swarm_stream_handler

    async def guarded(stream: Any) -> None:
        try:
            await handle(stream)
            await stream.close()
        except Exception as error:  # noqa: BLE001  the border between a peer's bytes and our process
            note("stream", error)
            if not is_loss(error):
                blame(stream.muxed_conn.peer_id, Offence.RUDE, "stream")
            await stream.reset()

    host.get_network().set_stream_handler(guarded)


def note(where: str, error: BaseException) -> None:
    """Log what was contained: kind and place, never the peer's bytes."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{trace.tb_frame.f_code.co_name}:{trace.tb_lineno}" if trace is not None else "?"
    logger.info("error.contained", extra={"where": where, "error": type(error).__name__, "place": place})


def is_loss(error: BaseException) -> bool:
    """True if the error says that a connection or stream went away, which honest peers do."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_loss, error.exceptions))
    if isinstance(error, MsgioException):
        return False
    return isinstance(
        error,
        IOException
        | MuxedStreamError
        | MuxedConnError
        | SwarmException
        | trio.TooSlowError
        | trio.BrokenResourceError
        | trio.ClosedResourceError
        | OSError,
    )
