"""Ed25519 signatures under domain separation: nothing can be replayed into another swarm, round or role."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sterna_protocol.errors import BadSignature

SIGNATURE_BYTES = 64
DOMAIN = b"sterna/1"

Verify = Callable[[bytes, bytes, bytes], None]
"""``verify`` or a function equal to it: (peer, signature, preimage), raises BadSignature."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A node's Ed25519 key; its public half is the peer id."""

    peer: bytes
    _private: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def from_seed(cls, seed: bytes) -> Self:
        """The key of a 32-byte seed (RFC 8032)."""
        private = Ed25519PrivateKey.from_private_bytes(seed)
        return cls(private.public_key().public_bytes_raw(), private)

    def sign(self, preimage: bytes) -> bytes:
        """The 64-byte signature over ``preimage``; the same bytes every time (RFC 8032 is deterministic)."""
        return self._private.sign(preimage)


def verify(peer: bytes, signature: bytes, preimage: bytes) -> None:
    """Return if ``peer`` signed ``preimage``.

    Raises:
        BadSignature: it did not, or ``peer`` is not a valid Ed25519 key.
    """
    try:
        Ed25519PublicKey.from_public_bytes(peer).verify(signature, preimage)
    except (InvalidSignature, ValueError) as error:
        raise BadSignature(f"signature of {peer.hex()[:8]} does not verify") from error


def preimage(*, swarm: bytes, round_: int, attempt: int, kind: int, author: bytes, body: bytes) -> bytes:
    """What an author signs: a fixed layout, so that no two messages share one.

    ::

        "sterna/1" 00 | swarm 32 | round u32 | attempt u16 | kind u8 | author 32 | SHA-256(body) 32

    The body goes in as its digest, so that a proof about two messages needs neither body.
    """
    return preimage_of_digest(
        swarm=swarm,
        round_=round_,
        attempt=attempt,
        kind=kind,
        author=author,
        body_digest=hashlib.sha256(body).digest(),
    )


def preimage_of_digest(
    *, swarm: bytes, round_: int, attempt: int, kind: int, author: bytes, body_digest: bytes
) -> bytes:
    """``preimage`` of a message whose body is known by its digest alone."""
    return b"".join(
        (
            DOMAIN,
            b"\0",
            swarm,
            round_.to_bytes(4, "big"),
            attempt.to_bytes(2, "big"),
            kind.to_bytes(1, "big"),
            author,
            body_digest,
        )
    )
