"""Error feedback: what a sparse codec leaves out is not lost but sent with a later delta.

The sender's own affair; receivers see deltas like any other. With v what training in a round gave and e what
was left before, both of the round's subspace::

    total t = v + e            what there is to send
    delta q = quantise(1.5 t)  what is sent: half too much, which the next delta takes back
    e := t - q                 once a certified slate holds q
    e := t                     once no slate can hold q any more
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sterna_protocol.errors import LocalProtocolError
from sterna_protocol.merge.codec import Codec, decode_delta, dequantise
from sterna_protocol.merge.scheme import delta_size
from sterna_protocol.swarm.charter import Charter

SPARSE: Final[frozenset[Codec]] = frozenset({"top2"})
"""Codecs that leave most elements out. What a dense one rounds off is smaller than what the next round
changes, and feeding it back has measured worse, not better."""


OVERSHOOT: Final = np.float32(1.5)
"""Peers keep different elements, so that a merge moves each by a fraction of what its sender means. Asking
for more makes up for a part of that, and e, then of the other sign, for what was too much. At 2 the residual
of a kept element would be as large as the element; 4 has diverged (docs/experiments/schemes.md)."""


@dataclass(frozen=True, slots=True)
class Unsent:
    """What was learned for one subspace and is in no slate: ``total`` (little-endian float32 [n]) without
    ``sent``, the blob of a delta of ``round_`` that a slate holds, if any."""

    round_: int
    total: bytes
    sent: bytes | None


def needs_feedback(charter: Charter) -> bool:
    """Whether a sender must keep what its deltas leave out."""
    return charter.codec in SPARSE


def overshot(total: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a sender with ``total`` [n] to send quantises."""
    return OVERSHOOT * total


def encode_total(values: NDArray[np.float32]) -> bytes:
    """``values`` [n] as ``Unsent.total``."""
    return values.astype("<f4", copy=False).tobytes()


def remaining(charter: Charter, author: bytes, unsent: Unsent) -> NDArray[np.float32]:
    """The residual e: float32 [n].

    Raises:
        LocalProtocolError: ``total`` has another size than this charter's deltas.
        MalformedMessage: ``sent`` is no delta of ``author`` and ``round_``.
    """
    size = delta_size(charter.adapter)
    if len(unsent.total) != 4 * size:
        raise LocalProtocolError(f"a residual of {len(unsent.total)} bytes, expected {4 * size}")
    values = np.frombuffer(unsent.total, "<f4").astype(np.float32)
    if unsent.sent is not None:
        values -= dequantise(decode_delta(charter, author=author, round_=unsent.round_, data=unsent.sent))
    return values
