"""Which numbers the peers train in a round, and the A matrices that nobody sends.

The correction of a linear is ``y += scale * (x A^T) B^T`` with A [rank, in] and B [out, rank]. Under
``fixed`` and ``cycle`` A follows from the charter's seed and a delta holds B; under ``pair`` it holds both.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sterna_protocol.errors import LocalProtocolError
from sterna_protocol.swarm.charter import AdapterScheme

_SIGNS_DOMAIN = b"sterna/a/1\0"


@dataclass(frozen=True, slots=True)
class Part:
    """One matrix inside a delta: elements ``[offset, offset + rows * cols)`` in row-major order.

    ``name`` is the linear's ("layers.0.q"); ``shape`` is [rank, in] for "a" and [out, rank] for "b".
    """

    name: str
    matrix: Literal["a", "b"]
    shape: tuple[int, int]
    offset: int

    @property
    def stop(self) -> int:
        return self.offset + self.shape[0] * self.shape[1]


def delta_parts(scheme: AdapterScheme) -> tuple[Part, ...]:
    """The matrices of a delta, without gaps: layer by layer, linears in the charter's order, A before B."""
    parts: list[Part] = []
    offset = 0
    for layer in range(scheme.layers):
        for linear in scheme.linears:
            name = f"layers.{layer}.{linear.name}"
            if scheme.scheme == "pair":
                parts.append(Part(name, "a", (scheme.rank, linear.in_features), offset))
                offset = parts[-1].stop
            parts.append(Part(name, "b", (linear.out_features, scheme.rank), offset))
            offset = parts[-1].stop
    return tuple(parts)


def delta_size(scheme: AdapterScheme) -> int:
    """Elements of a delta."""
    return scheme.delta_elements


def subspace_of(scheme: AdapterScheme, round_: int) -> int:
    """The subspace that round ``round_`` trains."""
    return round_ % scheme.subspaces


def a_signs(scheme: AdapterScheme, subspace: int, name: str) -> NDArray[np.int8]:
    """The signs of A of the linear ``name`` ("layers.0.q") in ``subspace``: int8 [rank, in], each -1 or +1.

    Bit i (from the least significant bit of each byte) of
    ``SHAKE-256("sterna/a/1" 00 || seed || subspace u32 || name)`` is element i in row-major order;
    a set bit is -1.

    Raises:
        LocalProtocolError: the scheme has no such subspace or linear.
    """
    if not 0 <= subspace < scheme.subspaces:
        raise LocalProtocolError(f"subspace {subspace}, the scheme has {scheme.subspaces}")
    count = scheme.rank * _in_features(scheme, name)
    stream = hashlib.shake_256(
        _SIGNS_DOMAIN + scheme.seed + subspace.to_bytes(4, "big") + name.encode("ascii")
    ).digest(-(-count // 8))
    bits = np.unpackbits(np.frombuffer(stream, np.uint8), count=count, bitorder="little")
    return (1 - 2 * bits.astype(np.int8)).reshape(scheme.rank, -1)


def a_exponent(in_features: int) -> int:
    """e such that A = signs * 2**e: the power of two nearest 1/sqrt(in_features) on a logarithmic scale.

    2**(2k-1) <= in_features < 2**(2k+1) gives e = -k, and in_features then has 2k or 2k + 1 bits.
    """
    return -(in_features.bit_length() // 2)


def _in_features(scheme: AdapterScheme, name: str) -> int:
    prefix, _, linear_name = name.rpartition(".")
    known = {linear.name: linear.in_features for linear in scheme.linears}
    layer = prefix.removeprefix("layers.")
    is_layer = layer.isdecimal() and layer == str(int(layer)) and int(layer) < scheme.layers
    if linear_name not in known or not is_layer or prefix != f"layers.{layer}":
        raise LocalProtocolError(f"the scheme has no linear {name!r}")
    return known[linear_name]
