"""What a round taught, as the blob that the swarm merges."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sterna_protocol.merge.adapter import STATE_EXPONENT, Adapter
from sterna_protocol.merge.codec import encode_delta, quantise
from sterna_protocol.merge.feedback import Unsent, encode_total, needs_feedback, overshot, remaining
from sterna_protocol.merge.scheme import subspace_of
from sterna_protocol.swarm.charter import Charter


def learned(
    charter: Charter, previous: Adapter, trained: NDArray[np.float32], round_: int
) -> NDArray[np.float32]:
    """Trained values minus the integers they started from, float32 [n]."""
    before = np.ldexp(previous.state[subspace_of(charter.adapter, round_)].astype(np.float64), STATE_EXPONENT)
    difference: NDArray[np.float64] = trained - before
    return difference.astype(np.float32)


def delta_blob(
    charter: Charter,
    previous: Adapter,
    trained: NDArray[np.float32],
    *,
    author: bytes,
    round_: int,
    unsent: Unsent | None = None,
) -> tuple[bytes, bytes | None]:
    """The encoded, quantised delta of ``trained`` [n] against the adapter it was trained from; and under a
    sparse codec the total that there was to send, which holds what earlier deltas left out.

    Raises:
        LocalProtocolError: a trained value is NaN or infinite.
    """
    values = learned(charter, previous, trained, round_)
    total = None
    if needs_feedback(charter):
        if unsent is not None:
            values += remaining(charter, author, unsent)
        total = encode_total(values)
        values = overshot(values)
    delta = quantise(values, charter.codec)
    return encode_delta(charter, author=author, round_=round_, delta=delta), total
