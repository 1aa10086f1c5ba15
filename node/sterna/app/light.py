"""Pull and verify without joining: a throw-away identity, several peers, nothing believed."""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

from sterna.app.founding import base_of_charter
from sterna.app.names import find_peer, require_beginning
from sterna.errors import ConfigError, Unreachable
from sterna.formats.gguf import write_gguf
from sterna.formats.native import write_native
from sterna.formats.peft import write_peft
from sterna.net import Net, NetConfig, PeerConnected, PeerDisconnected, open_net
from sterna.swarm.light import LightPeer
from sterna.swarm.unmerge import unmerge
from sterna_protocol.merge.adapter import Adapter, encode_adapter
from sterna_protocol.round.chain import Chain
from sterna_protocol.swarm.charter import Charter, SignedCharter
from sterna_protocol.swarm.invitation import decode_invitation
from sterna_protocol.swarm.ticket import Ticket, decode_ticket
from sterna_protocol.wire.chunks import blob_digest
from sterna_protocol.wire.ids import peer_name

MORE_PEERS_SECONDS = 1.0
"""After the first peer answered: how long others of the ticket may still connect, to be asked as well."""


class Format(StrEnum):
    """What `pull` writes."""

    PEFT = "peft"
    GGUF = "gguf"
    STERNA = "sterna"


async def pull_adapter(ticket_text: str, output: Path, format_: Format, *, timeout: float) -> dict[str, Any]:
    """Fetch, verify and write the newest certified adapter; what was written.

    Raises:
        MalformedMessage: the ticket is not one.
        Unreachable: nobody of the swarm answers, or it has no certified round yet.
        VerificationError: what the peers show contradicts the ticket.
        ConfigError: ``output`` holds something else, or GGUF is asked for and the base is not here.
    """
    ticket = decode_ticket(ticket_text)
    async with open_light_peer(ticket, timeout=timeout) as light:
        signed = await light.charter()
        charter = signed.charter
        chain = await light.chain(charter)
        certificate = chain.head
        if certificate is None:
            raise Unreachable(f"the swarm {charter.name!r} has certified no round yet; try again later")
        adapter = await light.adapter(charter, chain.head_adapter)
    if format_ is Format.STERNA:
        history = [chain.at(round_) for round_ in range(1, certificate.round_)]
        write_native(
            output,
            charter=signed,
            adapter=adapter,
            certificate=certificate,
            history=[earlier for earlier in history if earlier is not None],
        )
    else:
        write_bare(output, charter, adapter, format_)
    return {
        "swarm": charter.swarm_id.hex(),
        "name": charter.name,
        "round": certificate.round_,
        "signatures": len(certificate.signatures),
        "adapter_digest": chain.head_adapter.hex(),
        "format": format_.value,
        "path": str(output),
    }


async def verify_round(ticket_text: str, round_: int | None, *, timeout: float) -> dict[str, Any]:
    """Check the whole chain, and recompute the merge of one round from its deltas; what was found.

    ``how`` is "recomputed", "certificate" (the deltas are no longer served) or "void".

    Raises:
        VerificationError: the certificate does not follow from its deltas, or from the chain before it.
        ConfigError: the round is not certified yet.
        Unreachable: nobody of the swarm answers.
    """
    ticket = decode_ticket(ticket_text)
    async with open_light_peer(ticket, timeout=timeout) as light:
        signed = await light.charter()
        charter = signed.charter
        chain = await light.chain(charter)
        wanted = chain.round_ - 1 if round_ is None else round_
        certificate = chain.at(wanted)
        if certificate is None:
            raise ConfigError(f"round {wanted} is not certified; the newest is {chain.round_ - 1}")
        how = "void"
        if certificate.decision.entries:
            how = "recomputed"
            try:
                await light.recompute(charter, chain, certificate)
            except Unreachable:
                if chain.round_ - 1 - wanted < charter.limits.retention_rounds:
                    raise
                how = "certificate"
    return {
        "verified": True,
        "how": how,
        "swarm": charter.swarm_id.hex(),
        "round": wanted,
        "slate_size": len(certificate.decision.entries),
        "signatures": len(certificate.signatures),
        "committee": len(chain.committee_at(wanted)),
        "adapter_digest": certificate.decision.adapter.hex(),
    }


async def verify_without(
    ticket_text: str, peer: str, round_: int | None, output: Path, format_: Format, *, timeout: float
) -> dict[str, Any]:
    """Replay the slates up to a round without the deltas of ``peer``, an id or its beginning, and write that
    adapter; what was done.

    Raises:
        MalformedMessage: the ticket is not one.
        ConfigError: the peer id is not one or has no delta there, or the format cannot hold the result.
        Unreachable: nobody of the swarm answers, or what would be replayed is no longer served.
        VerificationError: what the peers show contradicts the ticket.
    """
    ticket = decode_ticket(ticket_text)
    require_beginning(peer)
    if format_ is Format.STERNA:
        raise ConfigError(
            "no certificate stands for an adapter without a peer, so that it cannot prove itself: "
            "choose --format peft or gguf"
        )
    async with open_light_peer(ticket, timeout=timeout) as light:
        charter = (await light.charter()).charter
        chain = await light.chain(charter)
        wanted = chain.round_ - 1 if round_ is None else round_
        author = find_peer(peer, _authors(chain))
        result = await unmerge(light, charter, chain, author, wanted)
    write_bare(output, charter, result.adapter, format_)
    certificate = chain.at(wanted)
    return {
        "without": peer_name(author),
        "swarm": charter.swarm_id.hex(),
        "round": wanted,
        "contributed": list(result.contributed),
        "replayed": list(result.replayed),
        "by_certificate": list(result.by_certificate),
        "complete": result.is_complete,
        "adapter_digest": blob_digest(encode_adapter(charter, result.adapter)).hex(),
        "certified_adapter_digest": certificate.decision.adapter.hex() if certificate else None,
        "format": format_.value,
        "path": str(output),
    }


def _authors(chain: Chain) -> set[bytes]:
    """Whoever had a delta in a certified slate, or is on the roll."""
    certificates = [chain.at(round_) for round_ in range(1, chain.round_)]
    slates = [certificate.decision.entries for certificate in certificates if certificate is not None]
    return {entry.author for slate in slates for entry in slate} | set(chain.roll.listed)


def write_bare(output: Path, charter: Charter, adapter: Adapter, format_: Format) -> None:
    """Write a format that carries no proof.

    Raises:
        ConfigError: GGUF is asked for and the swarm's base is not on this machine.
    """
    if format_ is Format.GGUF:
        # The charter does not say how many heads the rows of q and k belong to.
        shape = base_of_charter(charter).base.architecture
        write_gguf(output, charter=charter, adapter=adapter, shape=shape)
    else:
        write_peft(output, charter=charter, adapter=adapter, base_name=charter.base_name)


async def fetch_charter(ticket: Ticket, *, timeout: float = 60.0) -> SignedCharter:
    """The charter of the ticket's swarm, from whoever of it answers.

    Raises:
        Unreachable: nobody does.
    """
    async with open_light_peer(ticket, timeout=timeout) as light:
        return await light.charter()


def topic_of(swarm: bytes) -> str:
    """The gossip topic of a swarm."""
    return f"sterna/{swarm.hex()}"


@asynccontextmanager
async def open_light_peer(ticket: Ticket, *, timeout: float) -> AsyncIterator[LightPeer]:
    """A light peer of the ticket's swarm, connected to whoever of it could be reached.

    Raises:
        Unreachable: nobody could in ``timeout`` seconds.
    """
    with tempfile.TemporaryDirectory(prefix="sterna-light-") as folder:
        blobs = Path(folder)
        network_key = b""
        if ticket.invite:
            network_key = decode_invitation(ticket.invite, ticket.swarm).network_key
        config = NetConfig(
            identity_seed=secrets.token_bytes(32),
            listen=(),
            bootstrap=ticket.addresses,
            topic=topic_of(ticket.swarm),
            blobs=blobs,
            network_key=network_key,
        )
        async with open_net(config) as net:
            connected: set[bytes] = set()
            someone = asyncio.Event()
            watching = asyncio.create_task(_watch(net, connected, someone))
            try:
                await _wait_for_peers(someone, ticket, timeout)
                yield LightPeer(
                    ticket,
                    network=net,
                    peers=lambda: sorted(connected),
                    blobs=lambda digest: (blobs / digest.hex()[:2] / digest.hex()).read_bytes(),
                )
            finally:
                watching.cancel()


async def _watch(net: Net, connected: set[bytes], someone: asyncio.Event) -> None:
    async for event in net.events():
        match event:
            case PeerConnected(peer, _):
                connected.add(peer)
                someone.set()
            case PeerDisconnected(peer):
                connected.discard(peer)


async def _wait_for_peers(someone: asyncio.Event, ticket: Ticket, timeout: float) -> None:
    try:
        async with asyncio.timeout(timeout):
            await someone.wait()
    except TimeoutError:
        raise Unreachable(
            f"none of the {len(ticket.addresses)} addresses in the ticket answered within {timeout:g} s; "
            "ask a member for a fresh ticket"
        ) from None
    await asyncio.sleep(MORE_PEERS_SECONDS)
