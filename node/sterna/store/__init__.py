"""What a node keeps on its disk: key, journal and blobs."""

from sterna.store.acts import WaitingActs
from sterna.store.blobs import Blobs
from sterna.store.disk import Disk
from sterna.store.store import Membership, PendingDelta, SeenPeer, Store, Verdict, open_store

__all__ = [
    "Blobs",
    "Disk",
    "Membership",
    "PendingDelta",
    "SeenPeer",
    "Store",
    "Verdict",
    "WaitingActs",
    "open_store",
]
