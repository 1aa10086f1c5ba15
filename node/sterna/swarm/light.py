"""A light peer: it joins nothing, asks several peers, and believes only what it can check itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from sterna.errors import Unreachable, VerificationError
from sterna.swarm.ports import Network
from sterna_protocol.errors import MalformedMessage, ProtocolError, RemoteProtocolError
from sterna_protocol.merge.adapter import (
    Adapter,
    adapter_blob_bytes,
    decode_adapter,
    encode_adapter,
    genesis_adapter,
)
from sterna_protocol.merge.codec import Delta, decode_delta, delta_blob_bytes
from sterna_protocol.merge.rules import merge
from sterna_protocol.round.chain import Chain
from sterna_protocol.round.heads import (
    MAX_ASKED_CERTIFICATES,
    CertificatesRequest,
    Frames,
    decode_response,
    encode_sync,
)
from sterna_protocol.swarm.charter import Charter, SignedCharter, decode_signed_charter
from sterna_protocol.swarm.introduction import encode_charter_request
from sterna_protocol.swarm.ticket import Ticket
from sterna_protocol.wire.chunks import blob_digest
from sterna_protocol.wire.ids import short
from sterna_protocol.wire.messages import Certificate, SlateEntry, decode_frame

T = TypeVar("T")

REQUEST_SECONDS = 15.0
FETCH_SECONDS = 120.0


class LightPeer:
    """Asks ``peers`` one after the other until one gives an answer that checks out."""

    def __init__(
        self,
        ticket: Ticket,
        *,
        network: Network,
        peers: Callable[[], Sequence[bytes]],
        blobs: Callable[[bytes], bytes],
    ) -> None:
        self._ticket = ticket
        self._network = network
        self._peers = peers
        self._read_blob = blobs

    async def charter(self) -> SignedCharter:
        """The swarm's charter, checked against the ticket.

        Raises:
            Unreachable: no peer gave it.
        """
        swarm = self._ticket.swarm

        def check(response: bytes) -> SignedCharter:
            return decode_signed_charter(response, swarm)

        return await self._first_correct(encode_charter_request(swarm), check, "the charter")

    async def chain(self, charter: Charter) -> Chain:
        """The longest chain of certificates that any peer shows, each checked against the one before.

        Raises:
            Unreachable: no peer shows a chain as long as the ticket's anchor.
            VerificationError: all who answer contradict the anchor: another history than the issuer's.
        """
        genesis, anchor_round = genesis_digest(charter), self._ticket.anchor_round
        chain = Chain(charter, genesis)
        found, strange = False, None
        for peer in self._peers():
            # Up to the anchor each peer shows its own history: one with stolen keys must not hide another's.
            shown = chain if chain.round_ > anchor_round else Chain(charter, genesis)
            try:
                await self._extend(shown, peer)
                answered = True
            except (Unreachable, ProtocolError):
                answered = False
            anchored = shown.at(anchor_round)
            if anchored is not None and anchored.id != self._ticket.anchor:
                strange = anchored.id
            elif answered and shown.round_ > anchor_round:
                chain, found = shown, True
        if found:
            return chain
        if strange is not None:
            raise VerificationError(
                f"round {anchor_round} ended in {short(strange)}, the ticket says "
                f"{short(self._ticket.anchor)}: these peers show another history than the ticket's"
            )
        raise Unreachable(
            f"no peer shows the certificates up to round {anchor_round}; try again when more are online"
        )

    async def adapter(self, charter: Charter, digest: bytes) -> Adapter:
        """The adapter blob ``digest``, fetched from whoever has it and checked by its name.

        Raises:
            Unreachable: no peer gave it.
        """
        if digest == genesis_digest(charter):
            return genesis_adapter(charter)
        return decode_adapter(charter, await self._blob(digest, adapter_blob_bytes(charter)))

    async def delta(self, charter: Charter, entry: SlateEntry) -> Delta:
        """The delta of a slate entry, fetched from whoever has it and checked by its name and its header.

        Raises:
            Unreachable: no peer gave it.
        """
        data = await self._blob(entry.delta, delta_blob_bytes(charter))
        return decode_delta(charter, author=entry.author, round_=entry.trained_round, data=data)

    async def recompute(self, charter: Charter, chain: Chain, certificate: Certificate) -> None:
        """Refetch the deltas of a certified slate, merge them, and return if that gives its adapter.

        Raises:
            Unreachable: the deltas are no longer served.
            VerificationError: the merge gives another adapter.
        """
        before = chain.adapter_before(certificate.round_)
        if before is None:
            raise VerificationError(f"the adapter before round {certificate.round_} is not in the chain")
        previous = await self.adapter(charter, before)
        deltas = []
        for entry in certificate.decision.entries:
            deltas.append((entry, await self.delta(charter, entry)))
        branches = chain.branches_at(certificate.round_)
        merged = await asyncio.to_thread(merge, charter, previous, deltas, certificate.round_, branches)
        digest = blob_digest(encode_adapter(charter, merged))
        if digest != certificate.decision.adapter:
            raise VerificationError(
                f"round {certificate.round_}: the slate merges to {short(digest)}, the certificate says "
                f"{short(certificate.decision.adapter)}"
            )

    async def _extend(self, chain: Chain, peer: bytes) -> None:
        while True:
            first = chain.round_
            request = encode_sync(
                CertificatesRequest(swarm=self._ticket.swarm, first=first, count=MAX_ASKED_CERTIFICATES)
            )
            response = decode_response(await self._network.request(peer, request, timeout=REQUEST_SECONDS))
            if not isinstance(response, Frames):
                raise MalformedMessage("expected certificates")
            for frame in response.frames:
                certificate = decode_frame(frame)
                if not isinstance(certificate, Certificate):
                    raise MalformedMessage("expected certificates")
                chain.check_next(certificate)
                chain.append(certificate)
            if chain.round_ == first:
                return

    async def _blob(self, digest: bytes, size: int) -> bytes:
        await self._network.fetch(digest, size, self._peers(), timeout=FETCH_SECONDS)
        data = self._read_blob(digest)
        if blob_digest(data) != digest:
            raise VerificationError(f"what was fetched as the blob {short(digest)} is another one")
        return data

    async def _first_correct(self, request: bytes, check: Callable[[bytes], T], what: str) -> T:
        reasons = []
        for peer in self._peers():
            try:
                return check(await self._network.request(peer, request, timeout=REQUEST_SECONDS))
            except (Unreachable, RemoteProtocolError) as failed:
                reasons.append(f"{short(peer)}: {failed}")
        raise Unreachable(f"no peer gave {what}" + (f" ({'; '.join(reasons)})" if reasons else ""))


def genesis_digest(charter: Charter) -> bytes:
    """Digest of the adapter before round 1."""
    return blob_digest(encode_adapter(charter, genesis_adapter(charter)))
