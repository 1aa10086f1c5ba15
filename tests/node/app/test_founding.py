"""Founding: a charter fits the base that it is founded over."""

from sterna.app.founding import FoundingChoices, find_base, found
from sterna.train.base import builtin_bases
from sterna.train.jobs import require_fits
from tests.support.charters import key


def test_every_base_that_ships_can_be_trained_under_the_charter_it_is_founded_with():
    for name in builtin_bases():
        base = find_base(name)
        charter = found(base, key(1), FoundingChoices(name="x")).charter
        require_fits(charter, base.base.architecture)
