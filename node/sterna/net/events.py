"""What the network tells the core: plain values, safe to keep."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Listening:
    """The host accepts connections; addresses are full multiaddrs that end in /p2p/<our PeerID>."""

    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PeerConnected:
    """The first connection to this peer stands; address is the other end of it, as a multiaddr."""

    peer: bytes
    address: str


@dataclass(frozen=True, slots=True)
class PeerDisconnected:
    """The last connection to this peer is gone."""

    peer: bytes


@dataclass(frozen=True, slots=True)
class Gossip:
    """A gossip message whose author the signature proves; who forwarded it does not matter."""

    author: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class Request:
    """A peer waits for ``Net.respond(request_id, ...)``, at most ``sync.ANSWER_SECONDS`` long."""

    peer: bytes
    request_id: int
    data: bytes


@dataclass(frozen=True, slots=True)
class PeerLied:
    """A peer sent bytes for this blob that its digest refutes; it has been penalised already."""

    peer: bytes
    digest: bytes


@dataclass(frozen=True, slots=True)
class PeerBanned:
    """A peer used up its score: disconnected, and refused for ``seconds``."""

    peer: bytes
    seconds: float


@dataclass(frozen=True, slots=True)
class NetRestarted:
    """The network process died and a new one starts; ``Listening`` and ``PeerConnected`` follow."""

    exit_code: int


NetEvent = (
    Listening | PeerConnected | PeerDisconnected | Gossip | Request | PeerLied | PeerBanned | NetRestarted
)
