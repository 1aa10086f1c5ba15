"""A light peer believes nothing: every lie on its way to the adapter is noticed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from sterna.errors import ConfigError, Unreachable, VerificationError
from sterna.swarm.light import LightPeer, genesis_digest
from sterna.swarm.unmerge import unmerge
from sterna_protocol.merge.adapter import Adapter, decode_adapter, encode_adapter, genesis_adapter
from sterna_protocol.merge.codec import decode_delta
from sterna_protocol.merge.rules import merge
from sterna_protocol.round.certificate import make_certificate
from sterna_protocol.round.heads import CertificatesRequest, Frames, decode_request, encode_sync
from sterna_protocol.swarm.charter import Charter, sign_charter
from sterna_protocol.swarm.introduction import is_charter_request
from sterna_protocol.swarm.ticket import Ticket
from sterna_protocol.wire.chunks import blob_digest
from sterna_protocol.wire.messages import Certificate, Decision, Precommit, SlateEntry, sign
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
    lie_of: Callable[[bytes, bytes], bytes | None] = lambda peer, data: None,
    read: Callable[[bytes], bytes] | None = None,
) -> LightPeer:
    """``lie`` answers for every peer, ``lie_of`` for one."""
    signed = sign_charter(charter, (key(1),)).encode()

    def answer(peer: bytes, data: bytes) -> bytes | None:
        told = lie(data) or lie_of(peer, data)
        if told is None and is_charter_request(data):
            return signed
        return told

    cache = MemoryJournal()
    board.journals[GUEST] = cache
    return LightPeer(
        ticket or Ticket(swarm=charter.swarm_id, addresses=()),
        network=board.line(GUEST, answer),
        peers=lambda: [peer for peer in board.drivers if peer != GUEST],
        blobs=read or cache.blobs.__getitem__,
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


def forged_chain(charter: Charter, rounds: int) -> list[Certificate]:
    """Another history of void rounds, signed with the founder's stolen key."""
    made: list[Certificate] = []
    for round_ in range(1, rounds + 1):
        decision = Decision(
            round_=round_,
            previous=made[-1].id if made else charter.swarm_id,
            entries=(),
            attesters=(key(1).peer,),
            adapter=genesis_digest(charter),
        )
        vote = sign(
            key(1), swarm=charter.swarm_id, round_=round_, attempt=0, body=Precommit(choice=decision.id)
        )
        made.append(make_certificate(charter, decision, attempt=0, signatures={key(1).peer: vote.signature}))
    return made


@pytest.mark.asyncio
async def test_one_donor_with_stolen_keys_does_not_hide_the_history_of_the_ticket(charter: Charter) -> None:
    async with swarm(charter) as board:
        forged = encode_sync(Frames(frames=tuple(made.frame() for made in forged_chain(charter, 5))))
        nothing = encode_sync(Frames(frames=()))
        first_asked = next(peer for peer in board.drivers if peer != GUEST)
        shown: list[bytes] = []

        def lie(peer: bytes, data: bytes) -> bytes | None:
            if peer != first_asked or is_charter_request(data):
                return None
            shown.append(forged if not shown else nothing)
            return shown[-1]

        honest = board.journals[key(1).peer].certificates
        ticket = Ticket(swarm=charter.swarm_id, addresses=(), anchor_round=ROUNDS, anchor=honest[-1].id)
        chain = await light_peer(board, charter, ticket=ticket, lie_of=lie).chain(charter)
    assert len(shown) == 2
    assert chain.head_id == honest[-1].id


@pytest.mark.asyncio
async def test_a_blob_is_what_its_name_says_or_is_not_taken(charter: Charter) -> None:
    async with swarm(charter) as board:
        blobs = board.journals[key(1).peer].blobs
        light = light_peer(board, charter, read=lambda digest: blobs[digest][:-1] + b"?")
        chain = await light.chain(charter)
        with pytest.raises(VerificationError, match="is another one"):
            await light.adapter(charter, chain.head_adapter)


async def merged_by_hand(charter: Charter, board: Switchboard, without: bytes, first: int = 1) -> bytes:
    """The digest of the adapter that the slates from ``first`` on give without one author."""
    certificates = board.journals[key(1).peer].certificates
    blobs = {digest: blob for journal in board.journals.values() for digest, blob in journal.blobs.items()}
    adapter = genesis_adapter(charter)
    if first > 1:
        adapter = decode_adapter(charter, blobs[certificates[first - 2].decision.adapter])
    for certificate in certificates[first - 1 :]:
        deltas = [
            (
                entry,
                decode_delta(
                    charter, author=entry.author, round_=entry.trained_round, data=blobs[entry.delta]
                ),
            )
            for entry in certificate.decision.entries
            if entry.author != without
        ]
        adapter = merge(charter, adapter, deltas, certificate.round_)
    return blob_digest(encode_adapter(charter, adapter))


@pytest.mark.asyncio
@pytest.mark.parametrize("rule", ["mean", "median"])
async def test_a_contributor_is_taken_out_as_if_it_had_sent_nothing(rule: str) -> None:
    charter = small_charter(min_deltas=3, rule=rule)
    async with swarm(charter) as board:
        light = light_peer(board, charter)
        chain = await light.chain(charter)
        result = await unmerge(light, charter, chain, key(2).peer, ROUNDS)
        expected = await merged_by_hand(charter, board, key(2).peer)
    assert blob_digest(encode_adapter(charter, result.adapter)) == expected != chain.head_adapter
    assert (result.contributed, result.replayed, result.by_certificate) == ((1, 2), (1, 2), ())
    assert result.is_complete


@pytest.mark.asyncio
async def test_rounds_whose_deltas_are_gone_keep_their_share_and_are_named(charter: Charter) -> None:
    async with swarm(charter) as board:
        light = light_peer(board, charter)
        chain = await light.chain(charter)
        first = chain.at(1)
        assert first is not None
        for journal in board.journals.values():
            for entry in first.decision.entries:
                journal.blobs.pop(entry.delta, None)
        result = await unmerge(light, charter, chain, key(2).peer, ROUNDS)
        expected = await merged_by_hand(charter, board, key(2).peer, first=2)
    assert blob_digest(encode_adapter(charter, result.adapter)) == expected
    assert (result.contributed, result.replayed, result.by_certificate) == ((1, 2), (2,), (1,))
    assert not result.is_complete


@pytest.mark.asyncio
async def test_a_round_whose_first_adapter_is_gone_keeps_its_share_and_is_named(charter: Charter) -> None:
    async with swarm(charter) as board:
        light = light_peer(board, charter)
        chain = await light.chain(charter)
        plain = light.adapter

        async def adapter(charter: Charter, digest: bytes) -> Adapter:
            if digest == genesis_digest(charter):
                raise Unreachable("nobody has it")
            return await plain(charter, digest)

        light.adapter = adapter  # type: ignore[method-assign]
        result = await unmerge(light, charter, chain, key(2).peer, ROUNDS)
        expected = await merged_by_hand(charter, board, key(2).peer, first=2)
    assert blob_digest(encode_adapter(charter, result.adapter)) == expected
    assert (result.contributed, result.replayed, result.by_certificate) == ((1, 2), (2,), (1,))


@pytest.mark.asyncio
async def test_deltas_under_a_key_that_was_rotated_away_are_taken_out_too(charter: Charter) -> None:
    async with swarm(charter) as board:
        light = light_peer(board, charter)
        chain = await light.chain(charter)
        chain.roll = replace(chain.roll, renamed={key(2).peer: key(7).peer})
        result = await unmerge(light, charter, chain, key(7).peer, ROUNDS)
        expected = await merged_by_hand(charter, board, key(2).peer)
    assert blob_digest(encode_adapter(charter, result.adapter)) == expected


@pytest.mark.asyncio
async def test_nothing_is_taken_out_when_no_slate_with_the_peer_is_served(charter: Charter) -> None:
    async with swarm(charter) as board:
        light = light_peer(board, charter)
        chain = await light.chain(charter)
        for journal in board.journals.values():
            for round_ in (1, 2):
                for entry in chain.at(round_).decision.entries:  # type: ignore[union-attr]
                    journal.blobs.pop(entry.delta, None)
        with pytest.raises(Unreachable, match="round 2 are no longer served"):
            await unmerge(light, charter, chain, key(2).peer, ROUNDS)


@pytest.mark.asyncio
async def test_who_never_contributed_cannot_be_taken_out(charter: Charter) -> None:
    async with swarm(charter) as board:
        light = light_peer(board, charter)
        chain = await light.chain(charter)
        with pytest.raises(ConfigError, match="no delta in rounds 1 to 2"):
            await unmerge(light, charter, chain, key(9).peer, ROUNDS)


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
