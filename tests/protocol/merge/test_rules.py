"""The merge: equal to its definition in fractions, whatever the order, the slice and the rule."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna_protocol.errors import LocalProtocolError
from sterna_protocol.merge import geometry, rules
from sterna_protocol.merge.adapter import STATE_LIMIT, Adapter, genesis_adapter
from sterna_protocol.merge.codec import Delta
from sterna_protocol.merge.geometry import inner_products, squared_norm
from sterna_protocol.merge.rules import merge
from sterna_protocol.merge.scheme import delta_size
from sterna_protocol.wire.limits import MAX_SLATE
from tests.protocol.merge import reference
from tests.protocol.merge.deltas import entry, random_delta, random_slate
from tests.support.charters import small_charter

RULES = ["mean", "clip+mean", "trimmed", "median", "nnm+trimmed", "clip+filter"]
CODECS = ["int8", "int4", "ternary", "top2"]
# One full block of every codec and a part of one more: 2 layers x rank 2 x (360 + 4) = 1,456 elements.
LONGER = (("q", 360, 4), ("down", 4, 10))


def random_adapter(charter, rng) -> Adapter:
    shape = (charter.adapter.subspaces, delta_size(charter.adapter))
    return Adapter(rng.integers(-STATE_LIMIT, STATE_LIMIT, shape, dtype=np.int32, endpoint=True))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(RULES),
    st.sampled_from(CODECS),
    st.sampled_from([("cycle", 2), ("cycle", 3), ("fixed", 1), ("pair", 1)]),
    st.integers(1, 9),
    st.integers(0, 45),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_every_rule_equals_its_definition(rule, codec, scheme, count, trim, late, seed):
    rng = np.random.default_rng(seed)
    charter = small_charter(
        scheme=scheme[0],
        subspaces=scheme[1],
        codec=codec,
        rule=rule,
        trim_percent=trim,
        linears=LONGER if count < 4 else (("q", 6, 4), ("down", 4, 10)),
    )
    previous = random_adapter(charter, rng)
    slate = random_slate(charter, rng, count, round_=11, late=late)
    expected = reference.merge(charter, previous.state.reshape(-1).tolist(), slate, 11)
    assert merge(charter, previous, slate, 11).state.reshape(-1).tolist() == expected


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(RULES), st.integers(2, 20), st.randoms(use_true_random=False), st.integers(0, 2**32))
def test_the_order_of_the_slate_does_not_matter(rule, count, random, seed):
    rng = np.random.default_rng(seed)
    charter = small_charter(rule=rule, codec="int8")
    slate = random_slate(charter, rng, count, round_=5)
    shuffled = random.sample(slate, count)
    previous = random_adapter(charter, rng)
    first, second = (merge(charter, previous, deltas, 5).state for deltas in (slate, shuffled))
    assert np.array_equal(first, second)


@pytest.mark.parametrize("rule", RULES)
def test_slices_do_not_show(rule, monkeypatch):
    rng = np.random.default_rng(1)
    charter = small_charter(rule=rule, codec="int4", linears=(("q", 1500, 4),))
    previous, slate = random_adapter(charter, rng), random_slate(charter, rng, 5, round_=5)
    whole = merge(charter, previous, slate, 5).state
    monkeypatch.setattr(rules, "_SLICE", 1024)
    monkeypatch.setattr(geometry, "_SLICE", 1024)
    assert np.array_equal(merge(charter, previous, slate, 5).state, whole)


# The largest sums that a charter allows: they must not wrap around.
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_slate_of_the_largest_deltas_does_not_overflow(rule, sign):
    charter = small_charter(rule=rule, codec="int8", trim_percent=0)
    size = delta_size(charter.adapter)
    largest = Delta(np.full(size, sign * 127, np.int8), np.zeros(1, np.int8), "int8")
    slate = [(entry(author, 8), largest) for author in range(MAX_SLATE)]
    merged = merge(charter, genesis_adapter(charter), slate, 8)
    assert (merged.state[0] == sign * 127 * 2**24).all()
    # One delta of another weight takes ``trimmed`` through its wide path.
    slate[0] = (entry(0, 7), largest)
    expected = reference.merge(charter, [0] * 4 * size, slate, 8)
    assert merge(charter, genesis_adapter(charter), slate, 8).state.reshape(-1).tolist() == expected


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_state_saturates(sign):
    charter = small_charter(codec="int8", scheme="fixed")
    size = delta_size(charter.adapter)
    largest = Delta(np.full(size, sign * 127, np.int8), np.zeros(1, np.int8), "int8")
    adapter = genesis_adapter(charter)
    for round_ in (1, 2):
        adapter = merge(charter, adapter, [(entry(1, round_), largest)], round_)
    assert (adapter.state == sign * STATE_LIMIT).all()


def ones(charter, code: int = 1, exponent: int = -24) -> Delta:
    """Every element is ``code * 2**exponent``."""
    return dataclasses.replace(
        random_delta(charter, np.random.default_rng(0), exponent, exponent),
        codes=np.full(delta_size(charter.adapter), code, np.int8),
    )


@pytest.mark.parametrize(("codes", "expected"), [((1, 0), 1), ((-1, 0), -1), ((1, 0, 0), 0), ((1, 1, 0), 1)])
def test_halves_round_away_from_zero(codes, expected):
    charter = small_charter(scheme="fixed")
    slate = [(entry(author, 1), ones(charter, code)) for author, code in enumerate(codes)]
    assert (merge(charter, genesis_adapter(charter), slate, 1).state == expected).all()


def test_an_empty_slate_changes_nothing():
    charter = small_charter()
    adapter = genesis_adapter(charter)
    assert merge(charter, adapter, [], 1) is adapter


def test_the_previous_adapter_stays_as_it_was():
    charter = small_charter(scheme="fixed")
    adapter = genesis_adapter(charter)
    merge(charter, adapter, [(entry(1, 1), ones(charter))], 1)
    assert not adapter.state.any()


def test_a_round_moves_its_own_subspace():
    charter = small_charter()
    merged = merge(charter, genesis_adapter(charter), [(entry(1, 6), ones(charter))], 6)
    assert merged.state.any(axis=1).tolist() == [False, False, True, False]


def test_a_late_delta_moves_the_subspace_that_it_trained_and_shares_the_weight_of_the_slate():
    charter = small_charter()
    slate = [(entry(1, 6), ones(charter, exponent=-10)), (entry(2, 5), ones(charter, exponent=-10))]
    merged = merge(charter, genesis_adapter(charter), slate, 6)
    unit = 2**14
    assert (merged.state[2] == round(unit * 256 / (256 + 181))).all()
    assert (merged.state[1] == round(unit * 181 / (256 + 181))).all()


def test_a_lone_late_delta_is_trimmed_away_where_nobody_else_trained():
    charter = small_charter(rule="trimmed", trim_percent=25)
    slate = [(entry(author, 6), ones(charter)) for author in range(3)] + [(entry(3, 5), ones(charter))]
    merged = merge(charter, genesis_adapter(charter), slate, 6)
    assert not merged.state[1].any()
    assert merged.state[2].any()


def test_clipping_holds_one_loud_delta_to_the_median():
    charter = small_charter(rule="clip+mean", codec="int8", scheme="fixed")
    slate = [(entry(author, 1), ones(charter, exponent=-12)) for author in range(3)]
    slate.append((entry(3, 1), ones(charter, code=100, exponent=-12)))
    merged = merge(charter, genesis_adapter(charter), slate, 1)
    # 65536 / 100 is cut to 655, so that the loud one counts 655 * 100 / 65536 of a quiet one.
    assert (merged.state == round(2**12 * (3 + 65500 / 65536) / 4)).all()


@pytest.mark.parametrize("rule", RULES)
def test_deltas_of_zeros_change_nothing(rule):
    charter = small_charter(rule=rule, scheme="fixed")
    slate = [(entry(author, 1), ones(charter, code=0)) for author in range(4)]
    assert not merge(charter, genesis_adapter(charter), slate, 1).state.any()


def test_clipping_silences_a_lone_loud_delta_among_silent_ones():
    charter = small_charter(rule="clip+mean", scheme="fixed")
    slate = [(entry(author, 1), ones(charter, code=author // 2, exponent=0)) for author in range(3)]
    assert not merge(charter, genesis_adapter(charter), slate, 1).state.any()


def test_trimming_drops_the_extremes():
    charter = small_charter(rule="trimmed", trim_percent=20, codec="int8", scheme="fixed")
    slate = [
        (entry(author, 1), ones(charter, code, exponent=-10))
        for author, code in enumerate((127, 1, 2, 3, -127))
    ]
    assert (merge(charter, genesis_adapter(charter), slate, 1).state == 2 * 2**14).all()


def test_the_median_is_the_middle_or_the_mean_of_the_two_middle_ones():
    charter = small_charter(rule="median", codec="int8", scheme="fixed")
    slate = [
        (entry(author, 1), ones(charter, code, exponent=-10))
        for author, code in enumerate((127, 3, -127, 5, 4))
    ]
    genesis = genesis_adapter(charter)
    assert (merge(charter, genesis, slate, 1).state == 4 * 2**14).all()
    assert (merge(charter, genesis, slate[:4], 1).state == 4 * 2**14).all()


def test_mixing_forgets_the_far_ones():
    charter = small_charter(rule="nnm+trimmed", trim_percent=40, codec="int8", scheme="fixed")
    slate = [
        (entry(author, 1), ones(charter, code, exponent=-10))
        for author, code in enumerate((127, 3, -127, 6, 0))
    ]
    # Each of 0, 3 and 6 is mixed with the other two: all three become 3. So does one end of the two others.
    assert (merge(charter, genesis_adapter(charter), slate, 1).state == 3 * 2**14).all()


def test_of_two_that_are_equally_far_the_one_with_the_smaller_author_is_mixed_in():
    charter = small_charter(rule="nnm+trimmed", trim_percent=40, codec="int8", scheme="fixed")
    slate = [(entry(author, 1), ones(charter, code, -10)) for author, code in enumerate((0, 1, -1))]
    # 0 is mixed with 1, which has the smaller author: the sums are 1, 1 and -1, the one in the middle 1.
    for deltas in (slate, slate[::-1]):
        assert (merge(charter, genesis_adapter(charter), deltas, 1).state == 2**14 // 2).all()


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(CODECS), st.integers(0, 2**32))
def test_norms_and_products_are_exact(codec, seed):
    charter = small_charter(codec=codec, scheme="fixed", linears=LONGER)
    rng = np.random.default_rng(seed)
    deltas = [random_delta(charter, rng) for _ in range(2)]
    first, second = (reference.whole_vector(charter, entry(1, 1), delta) for delta in deltas)
    assert squared_norm(deltas[0]) == sum(value * value for value in first)
    product = sum(a * b for a, b in zip(first, second, strict=True))
    assert inner_products(deltas, [(1, 0), (0, 1)]) == [product, product]


@pytest.mark.parametrize(
    ("trained_round", "max_staleness"), [(9, 2), (5, 2), (7, 0)], ids=["future", "too late", "never late"]
)
def test_a_delta_of_a_round_that_does_not_count_is_our_error(trained_round, max_staleness):
    charter = small_charter(max_staleness=max_staleness)
    with pytest.raises(LocalProtocolError, match=f"delta of round {trained_round} in round 8"):
        merge(charter, genesis_adapter(charter), [(entry(1, trained_round), ones(charter))], 8)


def test_what_does_not_fit_the_charter_is_our_error():
    charter = small_charter()
    good, adapter = ones(charter), genesis_adapter(charter)
    for delta, message in (
        (dataclasses.replace(good, codec="int8"), "delta of codec int8, the charter has ternary"),
        (dataclasses.replace(good, codes=good.codes[1:]), r"delta codes are int8 \(39,\)"),
        (dataclasses.replace(good, codes=good.codes.astype(np.int16)), "delta codes are int16"),
        (dataclasses.replace(good, codes=good.codes * np.int8(2)), r"delta codes are 2\.\.2"),
        (dataclasses.replace(good, exponents=np.array([1], np.int8)), r"delta exponents are 1\.\.1"),
        (dataclasses.replace(good, exponents=np.array([-25], np.int8)), r"delta exponents are -25"),
        (dataclasses.replace(good, exponents=good.exponents[1:]), r"delta exponents are int8 \(0,\)"),
    ):
        with pytest.raises(LocalProtocolError, match=message):
            merge(charter, adapter, [(entry(1, 1), delta)], 1)
    with pytest.raises(LocalProtocolError, match=r"adapter state is int32 \(3, 40\)"):
        merge(charter, Adapter(adapter.state[1:]), [(entry(1, 1), good)], 1)
    with pytest.raises(LocalProtocolError, match="two deltas of one author"):
        merge(charter, adapter, [(entry(1, 1), good), (entry(1, 0), good)], 1)
    with pytest.raises(LocalProtocolError, match="slate of 65 deltas"):
        merge(charter, adapter, [(entry(i, 1), good) for i in range(65)], 1)
