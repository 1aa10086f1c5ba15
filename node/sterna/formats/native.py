"""Sterna's own adapter file: exact integers, with the charter and the certificates that prove them.

A safetensors file::

    state         I32 [subspaces, n]   in units of 2**-24
    charter       U8                   the signed charter
    certificates  U8                   frames, oldest first, each after its length as u32 big-endian; the
                                       last one certifies the state

Whoever has the file can check it without a network: the founders signed the charter; the first committee
follows from it; each certificate is signed by a quorum of the committee that the one before names; the last
one names the digest of the state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.errors import ConfigError, VerificationError
from sterna.formats.output import read_file, write_file
from sterna.formats.tensors import Expected, decode_tensors, encode_tensors
from sterna_protocol.errors import ProtocolError
from sterna_protocol.merge.adapter import Adapter, decode_adapter, encode_adapter, genesis_adapter
from sterna_protocol.round.certificate import verify_signatures
from sterna_protocol.round.chain import Chain
from sterna_protocol.swarm.charter import Charter, SignedCharter
from sterna_protocol.wire.chunks import blob_digest
from sterna_protocol.wire.messages import Certificate, decode_frame

FORMAT = "sterna-adapter/1"

MAX_FILE_BYTES = 2 << 30
"""Rank 256 over seven linears of 40 layers of a 13B base takes 2 GiB; the file is read into memory."""

_LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True)
class NativeAdapter:
    """An adapter and its proof.

    ``proven``: the certificates reach back to round 1, so that nothing is left to trust but the founders.
    Otherwise the signatures are good, but only the swarm can tell whether their makers were the committee.
    """

    charter: Charter
    certificate: Certificate
    adapter: Adapter
    proven: bool


def write_native(
    path: Path,
    *,
    charter: SignedCharter,
    adapter: Adapter,
    certificate: Certificate,
    history: Sequence[Certificate] = (),
) -> None:
    """Write ``adapter`` with its proof. ``history``: the certificates of the rounds before, oldest first.

    Raises:
        ConfigError: ``path`` is a folder.
        VerificationError: the certificate is not this adapter's, or does not follow from the history.
        StorageError: the disk refused; what was there is as it was.
    """
    chain = (*history, certificate)
    _verify(charter, chain, adapter, source=str(path))
    frames = b"".join(_with_length(entry.frame()) for entry in chain)
    tensors: dict[str, NDArray[Any]] = {
        "state": adapter.state,
        "charter": np.frombuffer(charter.encode(), np.uint8),
        "certificates": np.frombuffer(frames, np.uint8),
    }
    metadata = {
        "format": FORMAT,
        "swarm": charter.charter.swarm_id.hex(),
        "round": str(certificate.round_),
        "adapter": certificate.decision.adapter.hex(),
    }
    write_file(path, encode_tensors(tensors, metadata))


def read_native(path: Path, *, swarm: bytes | None = None) -> NativeAdapter:
    """The adapter in ``path``, which anybody may have made, after every check that needs no network.

    ``swarm``: the id it must be of; without it, look at ``charter`` before you trust the founders.

    Raises:
        ConfigError: it is not such a file.
        VerificationError: it is one, but does not prove what it claims.
        StorageError: the disk refused.
    """
    data = read_file(path, MAX_FILE_BYTES)
    expected = {
        "state": Expected(("I32",), (None, None)),
        "charter": Expected(("U8",), (None,)),
        "certificates": Expected(("U8",), (None,)),
    }
    tensors, metadata = decode_tensors(data, expected, str(path))
    if metadata.get("format") != FORMAT:
        raise ConfigError(f"{path} is not of the format {FORMAT}; export it with a newer or older sterna")
    try:
        signed = SignedCharter.decode(tensors["charter"].tobytes())
        chain = _frames(tensors["certificates"].tobytes(), path)
        adapter = Adapter(tensors["state"].astype(np.int32, copy=False))
        # Shape and range as for a blob from the network.
        decode_adapter(signed.charter, encode_adapter(signed.charter, adapter))
    except ProtocolError as error:
        raise VerificationError(f"{path}: {error}") from error
    if swarm is not None and signed.charter.swarm_id != swarm:
        raise VerificationError(
            f"{path} is of the swarm {signed.charter.swarm_id.hex()}, not of {swarm.hex()}"
        )
    proven = _verify(signed, chain, adapter, source=str(path))
    return NativeAdapter(signed.charter, chain[-1], adapter, proven)


def _verify(signed: SignedCharter, chain: tuple[Certificate, ...], adapter: Adapter, *, source: str) -> bool:
    """Whether the chain begins at round 1; returns only if everything that can be checked holds.

    Raises:
        VerificationError: it does not.
    """
    charter = signed.charter
    try:
        signed.verify()
        digest = blob_digest(encode_adapter(charter, adapter))
        if chain[-1].decision.adapter != digest:
            raise VerificationError(
                f"{source}: the certificate of round {chain[-1].round_} names the adapter "
                f"{chain[-1].decision.adapter.hex()}, this one is {digest.hex()}"
            )
        proven = chain[0].round_ == 1
        if proven:
            checked = Chain(charter, blob_digest(encode_adapter(charter, genesis_adapter(charter))))
            for certificate in chain:
                checked.check_next(certificate)
                checked.append(certificate)
        else:
            # Who may sign follows from the rounds before: without them, only that somebody signed is known.
            for previous, certificate in pairwise(chain):
                _require_follows(previous, certificate)
            for certificate in chain:
                _verify_signatures(charter, certificate)
    except ProtocolError as error:
        raise VerificationError(f"{source}: {error}") from error
    return proven


def _require_follows(previous: Certificate, certificate: Certificate) -> None:
    if certificate.round_ != previous.round_ + 1 or certificate.decision.previous != previous.id:
        raise VerificationError(
            f"the certificate of round {certificate.round_} does not continue that of round {previous.round_}"
        )


def _verify_signatures(charter: Charter, certificate: Certificate) -> None:
    """The part of the check that needs no certificate before."""
    if certificate.swarm != charter.swarm_id:
        raise VerificationError(f"certificate of swarm {certificate.swarm.hex()}, not of this charter")
    verify_signatures(certificate)


def _with_length(frame: bytes) -> bytes:
    return len(frame).to_bytes(_LENGTH_BYTES, "big") + frame


def _frames(data: bytes, path: Path) -> tuple[Certificate, ...]:
    chain: list[Certificate] = []
    position = 0
    while position < len(data):
        start = position + _LENGTH_BYTES
        position = start + int.from_bytes(data[position:start], "big")
        certificate = decode_frame(data[start:position])
        if position > len(data) or not isinstance(certificate, Certificate):
            raise ConfigError(f"{path} is cut off, or holds something that is no certificate")
        chain.append(certificate)
    if not chain:
        raise ConfigError(f"{path} holds no certificate")
    return tuple(chain)
