"""Sync: what to answer a peer that asks, and what to ask one that knows more (records: round/heads.py)."""

from __future__ import annotations

from collections.abc import Sequence

from sterna_protocol.round.chain import Chain
from sterna_protocol.round.heads import (
    MAX_ASKED_CERTIFICATES,
    MAX_ASKED_FRAMES,
    CertificatesRequest,
    Frames,
    FramesRequest,
    Heads,
    Inventory,
    InventoryRequest,
    RequestRecord,
    ResponseRecord,
)
from sterna_protocol.round.open_round import OpenRound
from sterna_protocol.wire.limits import MAX_INVENTORY, MAX_RESPONSE_BYTES

FRAME_OVERHEAD_BYTES = 8
"""Upper bound of what the encoding adds to each frame of a response, and to the response."""


def respond(asked: RequestRecord, heads: Heads, chain: Chain, open_round: OpenRound) -> ResponseRecord:
    """The response of the node that stands at ``heads``."""
    room = MAX_RESPONSE_BYTES - FRAME_OVERHEAD_BYTES
    match asked:
        case Heads():
            return heads
        case InventoryRequest():
            ids = open_round.pool.ids() if asked.round_ == heads.round_ else ()
            return Inventory(round_=asked.round_, ids=ids[:MAX_INVENTORY])
        case FramesRequest():
            wanted = asked.ids if asked.round_ == heads.round_ else ()
            found = [open_round.pool.frame(name) for name in wanted]
            return Frames(frames=_fitting([frame for frame in found if frame is not None], room))
        case CertificatesRequest():
            return Frames(frames=_fitting(chain.frames(asked.first, asked.count), room))


def follow_heads(ours: Heads, theirs: Heads) -> RequestRecord | None:
    """What to ask a peer that stands at ``theirs``; None: it has nothing for this node."""
    if theirs.round_ > ours.round_ or (theirs.round_ == ours.round_ and theirs.head != ours.head):
        return ask_certificates(ours)
    if theirs.round_ == ours.round_ and theirs.messages != ours.messages:
        return InventoryRequest(swarm=ours.swarm, round_=ours.round_)
    return None


def follow_inventory(ours: Heads, inventory: Inventory, open_round: OpenRound) -> RequestRecord | None:
    """What to ask a peer that holds ``inventory``."""
    # [IGNORE] The inventory is of the open round
    if inventory.round_ != ours.round_:
        return None
    lacked = [name for name in inventory.ids if not open_round.pool.has(name)]
    return ask_frames(ours, lacked) if lacked else None


def ask_certificates(ours: Heads) -> RequestRecord:
    """A request for the next certificates.

    The head's own round is asked for too: a peer that closed it otherwise shows its fork.
    """
    first = max(1, ours.round_ - 1)
    return CertificatesRequest(swarm=ours.swarm, first=first, count=MAX_ASKED_CERTIFICATES)


def ask_frames(ours: Heads, names: Sequence[bytes]) -> RequestRecord:
    """A request for messages of the open round; what does not fit is asked for at the next heads."""
    return FramesRequest(swarm=ours.swarm, round_=ours.round_, ids=tuple(names[:MAX_ASKED_FRAMES]))


def _fitting(frames: Sequence[bytes], room: int) -> tuple[bytes, ...]:
    fit: list[bytes] = []
    for frame in frames[:MAX_ASKED_FRAMES]:
        room -= len(frame) + FRAME_OVERHEAD_BYTES
        if room < 0:
            break
        fit.append(frame)
    return tuple(fit)
