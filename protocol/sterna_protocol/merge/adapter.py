"""The adapter that a swarm shares: exact integers, and the float matrices they stand for.

An adapter blob::

    "STRA" | version u8 = 1 | 0 u24 | swarm 32        40 bytes
    state        i32 little-endian [subspaces, n], in units of 2**-24
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sterna_protocol.errors import LocalProtocolError, MalformedMessage
from sterna_protocol.merge.scheme import a_exponent, a_signs, delta_parts, delta_size
from sterna_protocol.swarm.charter import AdapterScheme, Charter

STATE_EXPONENT: Final = -24
"""The state counts 2**-24: the precision of a float32 near 1, a thousandth of the smallest useful step."""

STATE_LIMIT: Final = 2**31 - 1
"""Largest magnitude of an element (128 in value); merges saturate there, and -2**31 has no meaning."""

HEADER_BYTES: Final = 40
_MAGIC: Final = b"STRA"
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Adapter:
    """The shared state. Shapes: ``state`` int32 [subspaces, n], n = delta_size(scheme)."""

    state: NDArray[np.int32]


def genesis_adapter(charter: Charter) -> Adapter:
    """The adapter before the first merge: B is 0, so that it changes nothing; a trained A is the seed's."""
    scheme = charter.adapter
    state = np.zeros((scheme.subspaces, delta_size(scheme)), np.int32)
    for part in delta_parts(scheme):
        if part.matrix == "a":
            unit = 1 << (a_exponent(part.shape[1]) - STATE_EXPONENT)
            state[0, part.offset : part.stop] = a_signs(scheme, 0, part.name).reshape(-1) * np.int32(unit)
    return Adapter(state)


def adapter_blob_bytes(charter: Charter) -> int:
    """The size of each adapter blob of this swarm, in bytes."""
    return HEADER_BYTES + 4 * charter.adapter.subspaces * delta_size(charter.adapter)


def encode_adapter(charter: Charter, adapter: Adapter) -> bytes:
    """The blob of ``adapter``.

    Raises:
        LocalProtocolError: the adapter does not fit the charter.
    """
    require_fits(charter, adapter)
    return _header(charter) + adapter.state.astype("<i4", copy=False).tobytes()


def decode_adapter(charter: Charter, data: bytes | memoryview) -> Adapter:
    """The adapter in ``data``; its state is a read-only view of ``data`` where the machine is little-endian.

    Raises:
        MalformedMessage: wrong size, another header, or an element out of range.
    """
    # [REJECT] The size is the one that the charter gives
    if len(data) != adapter_blob_bytes(charter):
        raise MalformedMessage(f"adapter of {len(data)} bytes, expected {adapter_blob_bytes(charter)}")
    # [REJECT] The header names this swarm
    header = bytes(data[:HEADER_BYTES])
    if header != _header(charter):
        raise MalformedMessage(f"adapter header {header.hex()}, expected {_header(charter).hex()}")
    state = np.frombuffer(data, "<i4", offset=HEADER_BYTES).astype(np.int32, copy=False)
    # [REJECT] No element is -2**31
    if state.min() < -STATE_LIMIT:
        raise MalformedMessage(f"adapter element {int(state.argmin())} is -2**31")
    state.flags.writeable = False
    return Adapter(state.reshape(charter.adapter.subspaces, -1))


def lora_factors(
    charter: Charter, adapter: Adapter
) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """The matrices of each adapted linear, for ``y += scale * (x A^T) B^T`` with the charter's scale.

    The subspaces stand side by side: R = rank * subspaces, and subspace c has the indices
    ``[c * rank, (c + 1) * rank)``.

    Shapes: A float32 [R, in], B float32 [out, R].
    """
    require_fits(charter, adapter)
    scheme = charter.adapter
    in_features = {linear.name: linear.in_features for linear in scheme.linears}
    trained = {(part.name, part.matrix): part for part in delta_parts(scheme)}
    factors = {}
    for (name, matrix), part in trained.items():
        if matrix == "a":
            continue
        b = np.concatenate([_values(state, part.offset, part.shape) for state in adapter.state], axis=1)
        if (name, "a") in trained:
            a_part = trained[name, "a"]
            a = _values(adapter.state[0], a_part.offset, a_part.shape)
        else:
            a = seeded_a(scheme, name, in_features[name.rpartition(".")[2]])
        factors[name] = (a, b)
    return factors


def seeded_a(scheme: AdapterScheme, name: str, in_features: int) -> NDArray[np.float32]:
    """A of one linear in every subspace, from the seed: float32 [rank * subspaces, in_features]."""
    signs = [a_signs(scheme, subspace, name) for subspace in range(scheme.subspaces)]
    a = np.concatenate(signs).astype(np.float32)
    a *= np.float32(2.0 ** a_exponent(in_features))
    return a


def require_fits(charter: Charter, adapter: Adapter) -> None:
    """Return if ``adapter`` has the shape of this charter.

    Raises:
        LocalProtocolError: it has not.
    """
    shape = (charter.adapter.subspaces, delta_size(charter.adapter))
    if adapter.state.shape != shape or adapter.state.dtype != np.int32:
        raise LocalProtocolError(
            f"adapter state is {adapter.state.dtype} {adapter.state.shape}, expected int32 {shape}"
        )


def _values(state: NDArray[np.int32], offset: int, shape: tuple[int, int]) -> NDArray[np.float32]:
    flat = state[offset : offset + shape[0] * shape[1]]
    # The same on every machine: int32 to float32 rounds once, to nearest, and the power of two is exact.
    values = flat.astype(np.float32)
    values *= np.float32(2.0**STATE_EXPONENT)
    return values.reshape(shape)


def _header(charter: Charter) -> bytes:
    return _MAGIC + bytes((_VERSION, 0, 0, 0)) + charter.swarm_id
