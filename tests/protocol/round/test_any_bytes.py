"""Whatever arrives, a node takes it or refuses it; it never fails otherwise."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from sterna_protocol.errors import RemoteProtocolError, Untimely
from sterna_protocol.node import Node
from sterna_protocol.round.heads import (
    CertificatesRequest,
    Frames,
    FramesRequest,
    Heads,
    Inventory,
    InventoryRequest,
    encode_sync,
)
from sterna_protocol.wire.messages import Attestation, Precommit, Prevote, Proposal
from tests.support.admission import rotation
from tests.support.founders import (
    CHARTER,
    PEERS,
    PROPOSER,
    SWARM,
    announcement,
    certificate,
    commitment,
    decision,
    digest,
    key_of,
    node,
    signed,
)

SENDER = sorted(PEERS)[0]
FRAMES = [
    commitment(1).frame(),
    signed(1, announcement(1)).frame(),
    signed(2, Attestation(accepted=(digest(1), digest(2)))).frame(),
    signed(PROPOSER, Proposal(decision=decision(1, 2), valid_attempt=0)).frame(),
    signed(1, Prevote(choice=digest(9)), attempt=3).frame(),
    signed(2, Precommit(choice=b""), round_=2).frame(),
    rotation(CHARTER, key_of(3), key_of(30)).frame(),
    certificate(decision(1, 2)).frame(),
]
SYNC = [
    encode_sync(Heads(swarm=SWARM, round_=3, head=digest(1), messages=digest(2), trains=True)),
    encode_sync(InventoryRequest(swarm=SWARM, round_=1)),
    encode_sync(FramesRequest(swarm=SWARM, round_=1, ids=(digest(1), digest(2)))),
    encode_sync(CertificatesRequest(swarm=SWARM, first=1, count=5)),
    encode_sync(Inventory(round_=1, ids=(digest(1), digest(2)))),
    encode_sync(Frames(frames=tuple(FRAMES))),
]


def take(taking: Node, data: bytes) -> None:
    for step in (
        lambda: taking.receive(1.0, data, SENDER),
        lambda: taking.answer(SENDER, data),
        lambda: taking.synced(1.0, SENDER, data),
    ):
        try:
            step()
        except (RemoteProtocolError, Untimely):
            continue


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes(data):
    take(node(), data)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(FRAMES + SYNC), st.integers(0, 2**32))
def test_any_mutation_of_a_good_frame(frame, seed):
    rng = random.Random(seed)
    data = bytearray(frame)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data))
        match rng.randrange(3):
            case 0:
                data[place] = rng.randrange(256)
            case 1:
                del data[place:]
                data += b"\xc0"
            case _:
                data[place:place] = rng.randbytes(rng.randint(1, 8))
    take(node(), bytes(data))


@settings(max_examples=40, deadline=None)
@given(st.permutations(FRAMES), st.permutations(range(8)))
def test_good_frames_in_any_order_leave_the_same_messages(frames, again):
    """Up to the certificate, which closes the round; the act waits for another one."""
    taking = node(trains=False)
    for frame in [*frames, *(frames[i] for i in again)]:
        take(taking, frame)
    assert taking.round_ == 2
    assert key_of(2).peer in taking.committee
    assert taking.status().messages == 2
