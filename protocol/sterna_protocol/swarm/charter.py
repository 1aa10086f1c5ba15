"""The charter: everything a swarm agrees on, signed by its founders, once and for all."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from sterna_protocol.errors import LocalProtocolError, MalformedMessage
from sterna_protocol.wire import signing
from sterna_protocol.wire.encoding import Record
from sterna_protocol.wire.ids import Digest, PeerKey, sha256
from sterna_protocol.wire.limits import (
    MAX_ADAPTER_ELEMENTS,
    MAX_CHARTER_BYTES,
    MAX_INVITE_USES,
    MAX_SLATE,
    MAX_STALENESS,
)
from sterna_protocol.wire.messages import Signature

Milliseconds = Annotated[int, Field(ge=1, le=7 * 24 * 3600 * 1000)]
Size = Annotated[int, Field(ge=1, le=2**24)]
Name = Annotated[
    str,
    Field(
        min_length=1,
        max_length=64,
        pattern=r"^[^\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]*$",
    ),
]
"""A name for people. Terminals show it: control characters and those that turn or hide text are refused."""

MAX_LINEARS = 16
"""Adapted linears of one layer; decoders in use have seven."""

MAX_FOUNDERS = 8
"""Founders sign by hand; eight is a large circle of friends."""


MAX_DEPTH = 3
"""Longest chain of invites: a founder knows friends of friends of friends by name at best."""


class Linear(Record):
    """One adapted linear of every layer; the name "q" stands for layers.0.q, layers.1.q, ..."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
    out_features: Size
    in_features: Size


class AdapterScheme(Record):
    """Which matrices the peers train (docs/spec/merge.md).

    ``fixed`` and ``cycle`` train B against A matrices drawn from ``seed``; ``cycle`` has ``subspaces`` of
    them and round r trains subspace r mod K. ``pair`` trains A and B and averages each.
    """

    scheme: Literal["fixed", "cycle", "pair"]
    rank: Annotated[int, Field(ge=1, le=256)]
    subspaces: Annotated[int, Field(ge=1, le=64)]
    scale: Annotated[int, Field(ge=1, le=64)]
    layers: Annotated[int, Field(ge=1, le=512)]
    linears: Annotated[tuple[Linear, ...], Field(min_length=1, max_length=MAX_LINEARS)]
    seed: Digest

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.scheme != "cycle" and self.subspaces != 1:
            raise ValueError(f"scheme {self.scheme} has one subspace, got {self.subspaces}")
        if len({linear.name for linear in self.linears}) != len(self.linears):
            raise ValueError("linears repeat a name")
        if self.subspaces * self.delta_elements > MAX_ADAPTER_ELEMENTS:
            raise ValueError(
                f"an adapter of {self.subspaces} x {self.delta_elements} elements, "
                f"the limit is {MAX_ADAPTER_ELEMENTS}"
            )
        return self

    @property
    def delta_elements(self) -> int:
        """Elements that a peer trains and sends in one round."""
        trains_a = self.scheme == "pair"
        return (
            self.layers
            * self.rank
            * sum(linear.out_features + trains_a * linear.in_features for linear in self.linears)
        )


class Recipe(Record):
    """How every peer trains in a round; a peer that deviates harms only the worth of its own delta."""

    steps: Annotated[int, Field(ge=1, le=100_000)]
    sequences_per_step: Annotated[int, Field(ge=1, le=4096)]
    tokens_per_sequence: Annotated[int, Field(ge=8, le=2**20)]
    learning_rate_micros: Annotated[int, Field(ge=1, le=10_000_000)]
    warmup_steps: Annotated[int, Field(ge=0, le=100_000)]


class MergeRule(Record):
    """How a slate becomes an adapter (docs/spec/merge.md).

    ``trim_percent``: share of the slate that ``trimmed`` and ``nnm+trimmed`` cut at each end, and that
    ``clip+filter`` takes for liars.
    """

    rule: Literal["mean", "clip+mean", "trimmed", "median", "nnm+trimmed", "clip+filter"]
    trim_percent: Annotated[int, Field(ge=0, le=45)]


class Timing(Record):
    """Longest time of each phase, from its start; a phase ends earlier when nothing more can come, or after
    the time that the last rounds took (``round.pace``).

    An attempt's propose, prevote and precommit timeouts are ``vote`` x (1 + attempt).
    """

    train: Milliseconds
    attest: Milliseconds
    vote: Milliseconds


class Limits(Record):
    """Sizes a round may have. ``retention_rounds``: how long attesters serve a round's deltas."""

    min_deltas: Annotated[int, Field(ge=1, le=MAX_SLATE)]
    max_deltas: Annotated[int, Field(ge=1, le=MAX_SLATE)]
    max_staleness: Annotated[int, Field(ge=0, le=MAX_STALENESS)]
    retention_rounds: Annotated[int, Field(ge=1, le=10_000)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min_deltas > self.max_deltas:
            raise ValueError(f"min_deltas {self.min_deltas} is over max_deltas {self.max_deltas}")
        return self


class AdmissionPolicy(Record):
    """Who may take part (docs/spec/admission.md). Each mode reads the fields that it needs.

    Args:
        mode: ``invite``: who was invited; ``psk``: the same, and nobody else can connect; ``open``: anybody.
        max_depth: longest chain of invites below a founder.
        quota: peers that a founder may invite, and the most that an invite may allow whom it lets in.
        open_percent: share of a merge's weight, and of a slate's places, for strangers of an open swarm.
        aged_rounds: rounds with a merged delta after which a stranger counts as a full peer and may sit in
            the committee; 0: at once, in a swarm that trusts whoever finds it.
    """

    mode: Literal["invite", "open", "psk"]
    max_depth: Annotated[int, Field(ge=1, le=MAX_DEPTH)]
    quota: Annotated[int, Field(ge=0, le=MAX_INVITE_USES)]
    open_percent: Annotated[int, Field(ge=1, le=50)]
    aged_rounds: Annotated[int, Field(ge=0, le=1000)]


class Charter(Record):
    """The founding document of a swarm. ``founders`` ascend; ``nonce`` tells equal charters apart."""

    max_bytes: ClassVar[int] = MAX_CHARTER_BYTES

    version: Literal[1]
    name: Name
    nonce: Annotated[bytes, Field(min_length=16, max_length=16)]
    founders: Annotated[tuple[PeerKey, ...], Field(min_length=1, max_length=MAX_FOUNDERS)]
    base_name: Name
    base: Digest
    tokenizer: Digest
    adapter: AdapterScheme
    codec: Literal["int8", "int4", "ternary", "top2"]
    merge: MergeRule
    recipe: Recipe
    timing: Timing
    limits: Limits
    quorum: Literal["byzantine", "majority"]
    admission: AdmissionPolicy

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if list(self.founders) != sorted(set(self.founders)):
            raise ValueError("founders must ascend without repeats")
        return self

    @cached_property
    def swarm_id(self) -> bytes:
        """The digest that names the swarm: in tickets, topics and every signature."""
        return sha256(b"sterna/charter/1", self.encode())


class SignedCharter(Record):
    """A charter with the signature of each founder, in the charter's order."""

    max_bytes: ClassVar[int] = 2 * MAX_CHARTER_BYTES

    charter: Charter
    signatures: Annotated[tuple[Signature, ...], Field(min_length=1, max_length=MAX_FOUNDERS)]

    def verify(self) -> None:
        """Return if every founder signed this charter.

        Raises:
            BadSignature: a founder did not.
            MalformedMessage: the number of signatures is not the number of founders.
        """
        founders = self.charter.founders
        if len(self.signatures) != len(founders):
            raise MalformedMessage(
                f"{len(self.signatures)} signatures, the charter has {len(founders)} founders"
            )
        for founder, signature in zip(founders, self.signatures, strict=True):
            signing.verify(founder, signature, _preimage(self.charter))


def sign_charter(charter: Charter, keys: tuple[signing.SigningKey, ...]) -> SignedCharter:
    """``charter`` with the signatures of all its founders.

    Raises:
        LocalProtocolError: a founder's key is missing.
    """
    by_peer = {key.peer: key for key in keys}
    missing = [founder for founder in charter.founders if founder not in by_peer]
    if missing:
        raise LocalProtocolError(f"no key for the founder {missing[0].hex()[:8]}")
    return SignedCharter(
        charter=charter,
        signatures=tuple(by_peer[founder].sign(_preimage(charter)) for founder in charter.founders),
    )


def decode_signed_charter(data: bytes, swarm_id: bytes) -> SignedCharter:
    """The signed charter of the swarm ``swarm_id``, from bytes that anybody may have sent.

    Raises:
        MalformedMessage: not a signed charter, or another swarm's.
        BadSignature: a founder did not sign it.
    """
    signed = SignedCharter.decode(data)
    if signed.charter.swarm_id != swarm_id:
        raise MalformedMessage(
            f"charter of swarm {signed.charter.swarm_id.hex()[:8]}, expected {swarm_id.hex()[:8]}"
        )
    signed.verify()
    return signed


def _preimage(charter: Charter) -> bytes:
    return b"sterna/charter/1\0" + charter.swarm_id
