"""The covariance filter: equal to its definition, and blind to the order of deltas."""

import numpy as np
import pytest

from sterna_protocol.merge.filter import filtered
from tests.protocol.merge import reference


def products_of(vectors):
    return [[sum(map(int.__mul__, one, other)) for other in vectors] for one in vectors]


def random_case(rng):
    """(vectors, masses, authors, cut): few values and few elements, so that many are equally far."""
    count, size = int(rng.integers(1, 9)), int(rng.integers(1, 5))
    reach = int(rng.choice([1, 3, 1000, 2**31]))
    vectors = rng.integers(-reach, reach, (count, size), endpoint=True)
    if count > 2 and rng.random() < 0.5:
        vectors[1] = -vectors[0]
    if rng.random() < 0.3:
        # What tells them apart is then in the bits that the shortening of the products leaves just so.
        vectors = vectors % 200
        vectors[:, 0] += 2**30
    # Heavier masses than any merge has show every bit of a direction.
    unit = 256 * int(rng.choice([1, 2**40]))
    masses = [unit * int(weight) for weight in rng.choice([256, 181, 148, 3], count)]
    authors = [int(number).to_bytes(2, "big") for number in rng.permutation(count)]
    return vectors.tolist(), masses, authors, int(rng.integers(0, (count + 1) // 2))


@pytest.mark.parametrize("seed", range(4))
def test_what_is_left_is_what_the_definition_leaves(seed):
    rng = np.random.default_rng(seed)
    for _ in range(60):
        vectors, masses, authors, cut = random_case(rng)
        left = filtered(products_of(vectors), masses, authors, cut)
        assert left == reference.masses_left(vectors, masses, authors, cut), (vectors, masses, authors, cut)


def test_the_order_of_the_deltas_does_not_matter():
    rng = np.random.default_rng(9)
    for _ in range(60):
        vectors, masses, authors, cut = random_case(rng)
        left = dict(zip(authors, filtered(products_of(vectors), masses, authors, cut), strict=True))
        order = rng.permutation(len(masses)).tolist()
        vectors, masses, authors = ([row[place] for place in order] for row in (vectors, masses, authors))
        again = dict(zip(authors, filtered(products_of(vectors), masses, authors, cut), strict=True))
        assert left == again


def test_those_who_all_say_the_same_far_away_lose_all():
    honest = [[1000, 10], [1000, -10], [990, 0], [1010, 5], [1000, -5]]
    masses = [256 * 256] * 7
    authors = [bytes((number,)) for number in range(7)]
    left = filtered(products_of([*honest, [-900, 0], [-900, 0]]), masses, authors, 2)
    assert left[5:] == [0, 0]
    assert min(left[:5]) > masses[0] // 2


def test_at_exactly_the_share_that_must_be_left_no_more_is_taken():
    # The outer two lose all in the first step, and what is left is one third.
    masses = [256, 256, 256]
    assert filtered(products_of([[-5], [0], [5]]), masses, [b"a", b"b", b"c"], 1) == masses


def test_nothing_is_taken_where_nobody_may_lie_or_all_agree():
    apart, alike = products_of([[1], [5], [9]]), products_of([[7, 7]] * 3)
    for products, cut in ((apart, 0), (alike, 1)):
        assert filtered(products, [256, 256, 256], [b"a", b"b", b"c"], cut) == [256, 256, 256]
