"""The network: one supervised process that runs libp2p, and the core's side of the pipe to it."""

from sterna.net.events import (
    Gossip,
    Listening,
    NetEvent,
    NetRestarted,
    PeerBanned,
    PeerConnected,
    PeerDisconnected,
    PeerLied,
    Request,
)
from sterna.net.process import Net, NetConfig, open_net

__all__ = [
    "Gossip",
    "Listening",
    "Net",
    "NetConfig",
    "NetEvent",
    "NetRestarted",
    "PeerBanned",
    "PeerConnected",
    "PeerDisconnected",
    "PeerLied",
    "Request",
    "open_net",
]
