"""Deltas and adapters of one swarm: from this disk, or else from a peer that holds them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sterna.swarm.ports import Journal, Network
from sterna_protocol.merge.adapter import (
    adapter_blob_bytes,
    decode_adapter,
    encode_adapter,
    genesis_adapter,
)
from sterna_protocol.merge.codec import decode_delta, delta_blob_bytes
from sterna_protocol.merge.rules import merge
from sterna_protocol.round.effects import FetchDelta, Merge
from sterna_protocol.swarm.charter import Charter

FETCH_TIMEOUT_SECONDS = 120.0


class Blobs:
    """What is fetched stays in the journal's blobs. Decoding and merging run in a thread.

    Each method raises Unreachable when no holder gives a blob in time, StorageError when the disk refuses.
    """

    def __init__(self, charter: Charter, network: Network, journal: Journal) -> None:
        self._charter = charter
        self._network = network
        self._journal = journal

    async def fetch_delta(self, effect: FetchDelta) -> None:
        """Have an announced delta here.

        Raises:
            RemoteProtocolError: it is not what was announced.
        """
        data = await self._blob(effect.delta, delta_blob_bytes(self._charter), effect.holders)
        await asyncio.to_thread(
            decode_delta, self._charter, author=effect.author, round_=effect.trained_round, data=data
        )

    async def fetch_adapter(self, digest: bytes, holders: tuple[bytes, ...]) -> None:
        """Have a certified adapter here.

        Raises:
            MalformedMessage: it is no adapter of this swarm.
        """
        data = await self.adapter(digest, holders)
        await asyncio.to_thread(decode_adapter, self._charter, data)

    async def merge(self, effect: Merge, holders: Callable[[], tuple[bytes, ...]]) -> bytes:
        """The digest of the adapter that a slate gives, which is among the blobs then.

        Args:
            holders: whom to ask, as it is at each blob: fetching a slate takes long, and peers come and go.

        Raises:
            MalformedMessage: a blob is not what its slate entry says.
        """
        previous = await self.adapter(effect.previous_adapter, holders())
        deltas = [
            await self._blob(entry.delta, delta_blob_bytes(self._charter), holders())
            for entry in effect.entries
        ]
        return await self._journal.put_blob(
            await asyncio.to_thread(_merged, self._charter, effect, previous, deltas)
        )

    async def adapter(self, digest: bytes, holders: tuple[bytes, ...]) -> bytes:
        """The encoded adapter; the one a swarm starts from is made here."""
        if not self._journal.has_blob(digest):
            genesis = await asyncio.to_thread(
                lambda: encode_adapter(self._charter, genesis_adapter(self._charter))
            )
            await self._journal.put_blob(genesis)
        return await self._blob(digest, adapter_blob_bytes(self._charter), holders)

    async def _blob(self, digest: bytes, size: int, holders: tuple[bytes, ...]) -> bytes:
        if not self._journal.has_blob(digest):
            await self._network.fetch(digest, size, holders, timeout=FETCH_TIMEOUT_SECONDS)
        return await self._journal.read_blob(digest)


def _merged(charter: Charter, effect: Merge, previous: bytes, deltas: list[bytes]) -> bytes:
    decoded = [
        (entry, decode_delta(charter, author=entry.author, round_=entry.trained_round, data=data))
        for entry, data in zip(effect.entries, deltas, strict=True)
    ]
    merged = merge(charter, decode_adapter(charter, previous), decoded, effect.round_, effect.branches)
    return encode_adapter(charter, merged)
