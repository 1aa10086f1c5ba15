"""What py-libp2p 0.8.1 does to itself on hostile input, and the guard for each.

Every guard names the fault it cures with the place in the library's source; tests/fuzz runs the attacks.
None of them changes what a correct peer sees. The library is pinned, so a new version means reading again
this file, hardened_connections.py, hardened_gossip.py and containment.py.
"""

from __future__ import annotations

from libp2p.protocol_muxer import multiselect_communicator
from libp2p.pubsub import gossipsub, pubsub
from libp2p.stream_muxer import muxer_multistream
from libp2p.stream_muxer.yamux import yamux

from sterna.net.hardened_connections import BoundedYamux, StrictStream, bounded_read_delim
from sterna.net.hardened_gossip import ignore_sender_record, sender_record


def install() -> None:
    """Replace names that the library looks up in its own modules; affects this whole process.

    The muxer that a host is given is negotiated but not used: muxer_multistream.py:143 makes its own Yamux.
    Each gossip frame carries its sender's signed addresses, made up afresh for each (gossipsub.py:1007) and
    checked on each (pubsub.py:567): half of the time that gossip takes. Identify carries the same record.
    And every read, of one byte too, is answered with a window update of its own (yamux.py:413); without that,
    half a window is given back at once, as other implementations do.
    """
    multiselect_communicator.read_delim = bounded_read_delim
    yamux.YamuxStream = StrictStream
    yamux._yamux_release_on_read = _never
    muxer_multistream.Yamux = BoundedYamux
    for module in (pubsub, gossipsub):
        module.env_to_send_in_RPC = sender_record
        module.maybe_consume_signed_record = ignore_sender_record


def _never() -> bool:
    return False
