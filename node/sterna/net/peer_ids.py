"""Keys and libp2p's PeerIDs: an Ed25519 PeerID is its key behind a fixed prefix."""

from __future__ import annotations

from libp2p.peer.id import ID

PEER_ID_PREFIX = bytes.fromhex("002408011220")
"""Identity multihash of an Ed25519 key: what stands before the 32 key bytes in a PeerID."""


def key_of(peer_id: ID) -> bytes:
    """The raw Ed25519 key in a PeerID.

    Raises:
        ValueError: another kind of key, or a hash of one.
    """
    raw = bytes(peer_id.to_bytes())
    if len(raw) != len(PEER_ID_PREFIX) + 32 or not raw.startswith(PEER_ID_PREFIX):
        raise ValueError(f"peer id {raw[:8].hex()}... ({len(raw)} bytes) is not an Ed25519 key")
    return raw[len(PEER_ID_PREFIX) :]


def id_of(key: bytes) -> ID:
    return ID(PEER_ID_PREFIX + key)
