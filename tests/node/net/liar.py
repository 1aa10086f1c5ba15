"""A peer that tells no truth about any chunk: ``python -m tests.node.net.liar ADDRESS FILE``.

Dials ADDRESS, then answers the leaf list of FILE honestly and every chunk with zeros, until its input ends.
"""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from sterna.net import exchange
from sterna.net.exchange import REQUEST, RESPONSE, Kind, Status
from sterna.net.host import open_host
from sterna.net.streams import Stream, read_exactly, write_all
from sterna_protocol.wire.chunks import CHUNK_BYTES, LeafList, chunk_length


async def main(address: str, file: str) -> None:
    data = Path(file).read_bytes()
    leaves = LeafList.of(data)

    async def lie(_peer: bytes, stream: Stream) -> None:
        while True:
            kind, _, index = REQUEST.unpack(await read_exactly(stream, REQUEST.size, seconds=60))
            piece = leaves.encode()[index * CHUNK_BYTES :][:CHUNK_BYTES]
            if kind == Kind.CHUNK:
                piece = bytes(chunk_length(len(data), index))
            await write_all(stream, RESPONSE.pack(Status.HERE, len(piece)) + piece, seconds=60)

    async with open_host(
        seed=b"l" * 32, listen=(), admit=lambda peer: True, blame=lambda peer, offence, why: None
    ) as host:
        host.handle(exchange.PROTOCOL, lie)
        await host.dial(address)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await trio.to_thread.run_sync(sys.stdin.read)


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
