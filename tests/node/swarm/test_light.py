"""A light peer believes nothing: every lie on its way to the adapter is noticed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from sterna.errors import Unreachable, VerificationError
from sterna.swarm.light import LightPeer
from sterna_protocol.merge.adapter import encode_adapter
from sterna_protocol.round.heads import CertificatesRequest, Frames, decode_request, encode_sync
from sterna_protocol.swarm.charter import Charter, sign_charter
from sterna_protocol.swarm.introduction import is_charter_request
from sterna_protocol.swarm.ticket import Ticket
from sterna_protocol.wire.chunks import blob_digest
from sterna_protocol.wire.messages import SlateEntry
from tests.node.swarm.test_driver import PEERS, make_driver, running, until_closed
from tests.support.charters import key, small_charter
from tests.support.switchboard import MemoryJournal, Switchboard

GUEST = key(8).peer
ROUNDS = 2


@pytest.fixture
def charter() -> Charter:
    return small_charter(min_deltas=3)


@asynccontextmanager
async def swarm(charter: Charter) -> AsyncIterator[Switchboard]:
    board = Switchboard()
    drivers = [make_driver(board, charter, number, until_round=ROUNDS) for number in PEERS]
    async with running(board, drivers):
        await until_closed(drivers, ROUNDS)
        yield board


def light_peer(
    board: Switchboard,
    charter: Charter,
    *,
    ticket: Ticket | None = None,
    lie: Callable[[bytes], bytes | None] = lambda data: None,
) -> LightPeer:
    signed = sign_charter(charter, (key(1),)).encode()

    def answer(data: bytes) -> bytes | None:
        told = lie(data)
        if told is None and is_charter_request(data):
            return signed
        return told

    cache = MemoryJournal()
    board.journals[GUEST] = cache
    return LightPeer(
        ticket or Ticket(swarm=charter.swarm_id, addresses=()),
        network=board.line(GUEST, answer),
        peers=lambda: [peer for peer in board.drivers if peer != GUEST],
        blobs=lambda digest: cache.blobs[digest],
    )


@pytest.mark.asyncio
async def test_the_adapter_of_an_honest_swarm_is_pulled_and_recomputed(charter: Charter) -> None:
    async with swarm(charter) as board:
        light = light_peer(board, charter)
        signed = await light.charter()
        chain = await light.chain(signed.charter)
        adapter = await light.adapter(signed.charter, chain.head_adapter)
        assert chain.head is not None
        await light.recompute(signed.charter, chain, chain.head)
    assert signed.charter == charter
    assert chain.head.round_ == ROUNDS
    assert blob_digest(encode_adapter(charter, adapter)) == chain.head_adapter


@pytest.mark.asyncio
async def test_a_charter_of_another_swarm_is_not_taken(charter: Charter) -> None:
    other = sign_charter(small_charter(name="another"), (key(1),)).encode()
    async with swarm(charter) as board:
        light = light_peer(board, charter, lie=lambda data: other if is_charter_request(data) else None)
        with pytest.raises(Unreachable, match="charter of swarm"):
            await light.charter()


@pytest.mark.asyncio
async def test_a_forged_certificate_ends_the_chain_before_it(charter: Charter) -> None:
    async with swarm(charter) as board:
        [first, second] = board.journals[key(1).peer].certificates

        def lie(data: bytes) -> bytes | None:
            if is_charter_request(data) or not isinstance(decode_request(data), CertificatesRequest):
                return None
            forged = second.model_copy(
                update={"decision": second.decision.model_copy(update={"adapter": b"x" * 32})}
            )
            return encode_sync(Frames(frames=(first.frame(), forged.frame())))

        with pytest.raises(Unreachable, match="no peer shows"):
            await light_peer(board, charter, lie=lie).chain(charter)


@pytest.mark.asyncio
async def test_another_history_than_the_tickets_anchor_is_refused(charter: Charter) -> None:
    async with swarm(charter) as board:
        ticket = Ticket(swarm=charter.swarm_id, addresses=(), anchor_round=1, anchor=b"another decision" * 2)
        with pytest.raises(VerificationError, match="another history"):
            await light_peer(board, charter, ticket=ticket).chain(charter)


@pytest.mark.asyncio
async def test_a_chain_shorter_than_the_tickets_anchor_is_not_taken(charter: Charter) -> None:
    async with swarm(charter) as board:
        ticket = Ticket(
            swarm=charter.swarm_id,
            addresses=(),
            anchor_round=ROUNDS + 1,
            anchor=b"decision of round 3 " + bytes(12),
        )
        with pytest.raises(Unreachable, match=f"up to round {ROUNDS + 1}"):
            await light_peer(board, charter, ticket=ticket).chain(charter)


@pytest.mark.asyncio
async def test_a_certificate_that_does_not_follow_from_its_deltas_is_noticed(charter: Charter) -> None:
    async with swarm(charter) as board:
        light = light_peer(board, charter)
        chain = await light.chain(charter)
        certificate = chain.head
        assert certificate is not None
        fewer = certificate.decision.model_copy(update={"entries": certificate.decision.entries[:-1]})
        with pytest.raises(VerificationError, match="slate merges to"):
            await light.recompute(charter, chain, certificate.model_copy(update={"decision": fewer}))


@pytest.mark.asyncio
async def test_deltas_that_nobody_serves_are_reported_as_unreachable(charter: Charter) -> None:
    async with swarm(charter) as board:
        light = light_peer(board, charter)
        chain = await light.chain(charter)
        certificate = chain.head
        assert certificate is not None
        gone: SlateEntry = certificate.decision.entries[0]
        for journal in board.journals.values():
            journal.blobs.pop(gone.delta, None)
        with pytest.raises(Unreachable):
            await light.recompute(charter, chain, certificate)
