"""What a node keeps on its disk: key, journal and blobs."""

from sterna.store.acts import WaitingActs
from sterna.store.addresses import SeenPeer
from sterna.store.blobs import Blobs
from sterna.store.disk import Disk
from sterna.store.failures import refused_by_disk, reported
from sterna.store.identity import NEXT_KEY
from sterna.store.keys import next_seed
from sterna.store.store import Membership, PendingDelta, Store, Verdict, open_store

__all__ = [
    "NEXT_KEY",
    "Blobs",
    "Disk",
    "Membership",
    "PendingDelta",
    "SeenPeer",
    "Store",
    "Verdict",
    "WaitingActs",
    "next_seed",
    "open_store",
    "refused_by_disk",
    "reported",
]
