"""What the state machine asks its driver to do, in order; a Store* is durable before the next one starts."""

from __future__ import annotations

from dataclasses import dataclass

from sterna_protocol.swarm.roll import Branches
from sterna_protocol.wire.messages import Certificate, Evidence, SlateEntry


@dataclass(frozen=True, slots=True)
class StoreOwn:
    """Write ``frame`` durably under (round, attempt, kind) before going on.

    ``kind`` is a wire kind for messages this node signed, or ``recovery.LOCK`` for the justification of a
    lock, which never travels as such.
    """

    round_: int
    attempt: int
    kind: int
    frame: bytes


@dataclass(frozen=True, slots=True)
class StoreCertificate:
    """Write the certificate that closes its round."""

    certificate: Certificate


@dataclass(frozen=True, slots=True)
class StoreEvidence:
    """Write a proof that one author signed two different messages for one place."""

    evidence: Evidence


@dataclass(frozen=True, slots=True)
class Broadcast:
    """Publish ``frame`` to the swarm."""

    frame: bytes


@dataclass(frozen=True, slots=True)
class Request:
    """Send ``data`` to ``peer`` on the sync stream; hand the response to ``Node.synced``."""

    peer: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class FetchDelta:
    """Fetch the blob ``delta``, decode and check it, answer with ``Node.delta_checked``.

    ``holders`` should have it, the likeliest first. The same announcement may be asked for again, with more
    holders, after it was answered with an error.
    """

    announcement: bytes
    delta: bytes
    author: bytes
    trained_round: int
    holders: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Merge:
    """Merge ``entries`` into ``previous_adapter``, store the result, answer with ``Node.merged``.

    ``branches``: which of their authors count together (``merge.rules.merge``).
    """

    round_: int
    slate: bytes
    entries: tuple[SlateEntry, ...]
    previous_adapter: bytes
    branches: Branches = ()


@dataclass(frozen=True, slots=True)
class FetchAdapter:
    """Have the adapter blob at hand, fetched or found; answer with ``Node.adapter_ready``."""

    adapter: bytes
    holders: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Train:
    """Train from ``adapter`` for ``round_``, in place of any older training; answer with ``Node.trained``."""

    round_: int
    adapter: bytes


@dataclass(frozen=True, slots=True)
class Closed:
    """A round is final. ``included``: this node's delta is in its slate."""

    certificate: Certificate
    included: bool


@dataclass(frozen=True, slots=True)
class Fork:
    """Two valid certificates for one round: more members lie than the quorum allows. Tell the user loudly.

    The node stays with ``ours``.
    """

    ours: Certificate
    theirs: Certificate


@dataclass(frozen=True, slots=True)
class Misbehaved:
    """``peer`` broke the protocol on the sync stream."""

    peer: bytes
    reason: str


Effect = (
    StoreOwn
    | StoreCertificate
    | StoreEvidence
    | Broadcast
    | Request
    | FetchDelta
    | Merge
    | FetchAdapter
    | Train
    | Closed
    | Fork
    | Misbehaved
)
