"""One vote a branch: many keys under one name weigh what one does."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna_protocol.merge.adapter import genesis_adapter
from sterna_protocol.merge.branches import mean_of
from sterna_protocol.merge.codec import Delta, block_elements
from sterna_protocol.merge.rules import merge
from sterna_protocol.merge.scheme import delta_size
from sterna_protocol.swarm.roll import OPEN
from sterna_protocol.wire.messages import SlateEntry
from tests.support.charters import small_charter

RULES = ("mean", "clip+mean", "trimmed", "median", "nnm+trimmed", "clip+filter")


def entry(number: int, round_: int = 1) -> SlateEntry:
    return SlateEntry(
        author=number.to_bytes(32, "big"), announcement=bytes(32), delta=bytes(32), trained_round=round_
    )


def under(branch: bytes, *numbers: int) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((number.to_bytes(32, "big"), branch) for number in numbers)


def delta_of(charter, code: int, exponent: int = -10) -> Delta:
    size = delta_size(charter.adapter)
    blocks = -(-size // block_elements(charter.codec))
    return Delta(np.full(size, code, np.int8), np.full(blocks, exponent, np.int8), charter.codec)


def values(delta: Delta) -> list[int]:
    block = block_elements(delta.codec)
    return [
        int(code) << (int(delta.exponents[i // block]) + 24) for i, code in enumerate(delta.codes.tolist())
    ]


def drawn(seed: int, size: int) -> Delta:
    rng = np.random.default_rng(seed)
    codes = rng.integers(-127, 128, size).astype(np.int8)
    exponents = rng.integers(-24, 1, -(-size // 256)).astype(np.int8)
    return Delta(codes, exponents, "int8")


@settings(max_examples=60)
@given(st.integers(2, 64), st.integers(1, 600), st.integers(0, 2**32))
def test_a_mean_is_the_nearest_that_its_block_can_hold(count: int, size: int, seed: int) -> None:
    deltas = [drawn(seed + number, size) for number in range(count)]
    mean = mean_of(deltas)
    sums = [sum(column) for column in zip(*(values(delta) for delta in deltas), strict=True)]
    assert mean.codes.min() >= -127
    for start in range(0, size, 256):
        exponent = int(mean.exponents[start // 256])
        exact = [Fraction(total, count * 2 ** (exponent + 24)) for total in sums[start : start + 256]]
        rounded = [int(abs(x) + Fraction(1, 2)) * (1 if x > 0 else -1) for x in exact]
        assert mean.codes[start : start + 256].tolist() == rounded
        if exponent > -24:
            # One less would not hold the largest.
            assert max(int(2 * abs(x) + Fraction(1, 2)) for x in exact) > 127


def test_the_largest_values_do_not_overflow() -> None:
    largest = Delta(np.full(300, -127, np.int8), np.zeros(2, np.int8), "int8")
    mean = mean_of([largest] * 64)
    assert (mean.codes == -127).all()
    assert (mean.exponents == 0).all()


@pytest.mark.parametrize("rule", RULES)
def test_many_keys_of_one_branch_weigh_what_one_does(rule: str) -> None:
    charter = small_charter(rule=rule, codec="int8")
    honest = [(entry(number), delta_of(charter, number)) for number in (1, 2, 3, 4)]
    liar = delta_of(charter, -120)
    crowd = [(entry(number), liar) for number in range(10, 40)]
    one = merge(charter, genesis_adapter(charter), [*honest, crowd[0]], 1)
    many = merge(charter, genesis_adapter(charter), [*honest, *crowd], 1, under(b"b" * 32, *range(10, 40)))
    assert (one.state == many.state).all()


@pytest.mark.parametrize("rule", RULES)
def test_the_order_does_not_matter(rule: str) -> None:
    charter = small_charter(rule=rule, codec="int8")
    slate = [(entry(number), delta_of(charter, number * 7 % 50, -12 - number % 3)) for number in range(1, 12)]
    branches = under(b"b" * 32, 3, 4, 5) + under(OPEN, 7, 8)
    first = merge(charter, genesis_adapter(charter), slate, 1, branches)
    second = merge(charter, genesis_adapter(charter), slate[::-1], 1, branches[::-1])
    assert (first.state == second.state).all()


def test_of_a_branch_the_newest_deltas_count() -> None:
    charter = small_charter(codec="int8", scheme="fixed")
    slate = [(entry(1, 5), delta_of(charter, 8)), (entry(2, 4), delta_of(charter, -100))]
    merged = merge(charter, genesis_adapter(charter), slate, 5, under(b"b" * 32, 1, 2))
    assert (merged.state == 8 << 14).all()


@pytest.mark.parametrize("strangers", [1, 5, 40])
def test_strangers_together_weigh_at_most_what_the_charter_allows(strangers: int) -> None:
    charter = small_charter(codec="int8", scheme="fixed", admission="open", open_percent=20)
    numbers = range(10, 10 + strangers)
    slate = [(entry(1), delta_of(charter, 0)), *((entry(n), delta_of(charter, 100)) for n in numbers)]
    merged = merge(charter, genesis_adapter(charter), slate, 1, under(OPEN, *numbers))
    assert (merged.state == 20 << 14).all()


def test_strangers_alone_weigh_all_there_is() -> None:
    charter = small_charter(codec="int8", scheme="fixed", admission="open")
    slate = [(entry(n), delta_of(charter, 50)) for n in (1, 2)]
    merged = merge(charter, genesis_adapter(charter), slate, 1, under(OPEN, 1, 2))
    assert (merged.state == 50 << 14).all()


def test_the_weight_of_strangers_is_rounded_down() -> None:
    charter = small_charter(codec="int8", scheme="fixed", admission="open", open_percent=1)
    late = [(entry(1, 1), delta_of(charter, 4)), (entry(2, 3), delta_of(charter, 127))]
    merged = merge(charter, genesis_adapter(charter), late, 3, under(OPEN, 2))
    # 1 % of 148 / 0.99 is a weight of 1.
    assert (merged.state == round(Fraction((4 * 148 + 127) << 14, 149))).all()
