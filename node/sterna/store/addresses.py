"""The address book: where the peers of a swarm were last reached."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import cast

from sterna.store.journal import Journal

MAX_PEERS = 1024
"""Peers kept in a swarm's address book; the ones not seen for longest go first."""

MAX_ADDRESSES = 8
"""Addresses kept of one peer: a machine has a few; a list of a thousand is somebody's attack."""


@dataclass(frozen=True, slots=True)
class SeenPeer:
    """An entry of the address book; ``seen`` in seconds since 1970, by the caller's clock."""

    peer: bytes
    addresses: tuple[str, ...]
    seen: int


class AddressBook:
    """Peers and their addresses, for each swarm apart; StorageError when the disk refuses."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def put(self, swarm: bytes, seen: SeenPeer) -> None:
        """Note where a peer was last reached; a full book loses the peer not seen for longest."""
        with self._journal.write("the address book was not saved") as db:
            db.execute(
                "INSERT OR REPLACE INTO peer VALUES (?, ?, ?, ?)",
                (swarm, seen.peer, json.dumps(seen.addresses[:MAX_ADDRESSES]), seen.seen),
            )
            db.execute(
                "DELETE FROM peer WHERE swarm = ?1 AND id IN "
                "(SELECT id FROM peer WHERE swarm = ?1 ORDER BY seen DESC, id LIMIT -1 OFFSET ?2)",
                (swarm, MAX_PEERS),
            )

    def peers(self, swarm: bytes) -> list[SeenPeer]:
        """The peers of a swarm, the one seen last first."""
        rows = self._journal.read(
            "SELECT id, addresses, seen FROM peer WHERE swarm = ? ORDER BY seen DESC, id", (swarm,)
        )
        typed = cast(list[tuple[bytes, str, int]], rows)
        return [SeenPeer(peer, tuple(json.loads(addresses)), seen) for peer, addresses, seen in typed]
