"""The merge of docs/spec/merge.md in plain Python integers and fractions: slow, and the meaning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from sterna_protocol.merge.codec import Delta, block_elements
from sterna_protocol.swarm.charter import Charter
from sterna_protocol.wire.messages import SlateEntry

Vector = list[int]
"""A delta as a vector of the whole adapter [subspaces * n], in units of 2**-24."""

WEIGHTS = (256, 181, 148)


def merge(
    charter: Charter, state: Sequence[int], deltas: Sequence[tuple[SlateEntry, Delta]], round_: int
) -> list[int]:
    """The new state, flat [subspaces * n]."""
    vectors = [whole_vector(charter, entry, delta) for entry, delta in deltas]
    weights = [WEIGHTS[round_ - entry.trained_round] for entry, _ in deltas]
    trim = charter.merge.trim_percent
    match charter.merge.rule:
        case "mean":
            change = mean(vectors, weights)
        case "clip+mean":
            change = mean(clip(vectors), weights)
        case "trimmed":
            change = trimmed(vectors, weights, cut=math.floor(Fraction(len(vectors) * trim, 100)))
        case "median":
            change = trimmed(vectors, weights, cut=(len(vectors) - 1) // 2)
        case "nnm+trimmed":
            authors = [entry.author for entry, _ in deltas]
            change = mixed_trimmed(
                vectors, weights, authors, cut=math.floor(Fraction(len(vectors) * trim, 100))
            )
        case "clip+filter":
            authors = [entry.author for entry, _ in deltas]
            change = clip_filter(
                vectors, weights, authors, cut=math.floor(Fraction(len(vectors) * trim, 100))
            )
        case rule:
            raise AssertionError(rule)
    limit = 2**31 - 1
    return [max(-limit, min(limit, old + half_away(new))) for old, new in zip(state, change, strict=True)]


def whole_vector(charter: Charter, entry: SlateEntry, delta: Delta) -> Vector:
    codes, exponents = delta.codes.tolist(), delta.exponents.tolist()
    block = block_elements(delta.codec)
    own = [code * 2 ** (exponents[i // block] + 24) for i, code in enumerate(codes)]
    before = entry.trained_round % charter.adapter.subspaces
    after = charter.adapter.subspaces - before - 1
    return [0] * (before * len(own)) + own + [0] * (after * len(own))


def mean(vectors: Sequence[Sequence[int | Fraction]], weights: Sequence[int]) -> list[Fraction]:
    total = sum(weights)
    return [
        Fraction(sum(weight * value for weight, value in zip(weights, column, strict=True)), total)
        for column in zip(*vectors, strict=True)
    ]


def clip(vectors: Sequence[Vector]) -> list[list[Fraction]]:
    return [
        [factor * value for value in vector]
        for factor, vector in zip(clip_factors(vectors), vectors, strict=True)
    ]


def clip_factors(vectors: Sequence[Vector]) -> list[Fraction]:
    squares = [sum(value * value for value in vector) for vector in vectors]
    median = sorted(squares)[(len(squares) - 1) // 2]
    return [
        Fraction(1) if square <= median else Fraction(math.isqrt(median * 2**32 // square), 2**16)
        for square in squares
    ]


def clip_filter(
    vectors: Sequence[Vector], weights: Sequence[int], authors: Sequence[bytes], cut: int
) -> list[Fraction]:
    factors = [int(factor * 2**16) for factor in clip_factors(vectors)]
    clipped = [[factor * value for value in vector] for factor, vector in zip(factors, vectors, strict=True)]
    masses = masses_left(clipped, [256 * weight for weight in weights], authors, cut)
    shares = [mass * factor // 256 for mass, factor in zip(masses, factors, strict=True)]
    return [
        Fraction(sum(share * value for share, value in zip(shares, column, strict=True)), 256 * sum(masses))
        for column in zip(*vectors, strict=True)
    ]


def masses_left(
    vectors: Sequence[Vector], masses: Sequence[int], authors: Sequence[bytes], cut: int
) -> list[int]:
    everybody = range(len(vectors))
    products = [[sum(map(int.__mul__, vectors[j], vectors[k])) for k in everybody] for j in everybody]
    longest = max(products[j][j] for j in everybody)
    while longest >= 2**48:
        products = [[product // 2 for product in row] for row in products]
        longest //= 2
    mass, whole = list(masses), sum(masses)
    found: list[tuple[Fraction, list[int]]] = []
    while not found or len(vectors) * sum(mass) > (len(vectors) - 2 * cut) * whole:
        total = sum(mass)
        # The products of the differences to the mean, times the square of the sum of the masses.
        centred = [
            [
                sum(
                    ((total if a == j else 0) - mass[a])
                    * ((total if b == k else 0) - mass[b])
                    * products[a][b]
                    for a in everybody
                    for b in everybody
                )
                for k in everybody
            ]
            for j in everybody
        ]
        left = [j for j in everybody if mass[j] > 0]
        farthest = sorted(left, key=lambda j: (-centred[j][j], authors[j]))[0]
        shadow = centred[farthest]
        for _ in range(8):
            size = 1
            while max(map(abs, shadow)) >= 2**32 * size:
                size *= 2
            direction = [mass[j] * (shadow[j] // size) for j in everybody]
            shadow = [sum(centred[j][k] * direction[k] for k in everybody) for j in everybody]
        variance = sum(mass[j] * shadow[j] ** 2 for j in everybody)
        length = sum(direction[j] * shadow[j] for j in everybody)
        if variance == 0 or length <= 0:
            return mass
        found.append((Fraction(variance, total**3 * length), mass))
        most = max(shadow[j] ** 2 for j in left)
        mass = [mass[j] * (most - shadow[j] ** 2) // most for j in everybody]
    return min(found, key=lambda entry: entry[0])[1]


def trimmed(vectors: Sequence[Vector], weights: Sequence[int], cut: int) -> list[Fraction]:
    count = len(vectors)
    change = []
    for column in zip(*vectors, strict=True):
        weighted = sorted(weight * value for weight, value in zip(weights, column, strict=True))
        kept = weighted[cut : count - cut]
        change.append(Fraction(sum(kept) * count, len(kept) * sum(weights)))
    return change


def mixed_trimmed(
    vectors: Sequence[Vector], weights: Sequence[int], authors: Sequence[bytes], cut: int
) -> list[Fraction]:
    count = len(vectors)
    weighted = [[weight * value for value in vector] for weight, vector in zip(weights, vectors, strict=True)]
    mixed = []
    for own in range(count):
        distances = {
            other: sum((a - b) ** 2 for a, b in zip(weighted[own], weighted[other], strict=True))
            for other in range(count)
        }
        order = sorted(distances, key=lambda other: (other != own, distances[other], authors[other]))
        near = order[: count - cut]
        mixed.append(
            [Fraction(sum(column), len(near)) for column in zip(*(weighted[i] for i in near), strict=True)]
        )
    change = []
    for column in zip(*mixed, strict=True):
        kept = sorted(column)[cut : count - cut]
        change.append(sum(kept, Fraction(0)) * count / (len(kept) * sum(weights)))
    return change


def half_away(value: Fraction) -> int:
    nearest = math.floor(abs(value) + Fraction(1, 2))
    return nearest if value >= 0 else -nearest
