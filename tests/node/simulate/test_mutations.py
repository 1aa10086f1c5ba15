"""The mutations stay applicable: a list that no longer fits the code checks nothing."""

from __future__ import annotations

import pytest

from tests.node.simulate.mutations import MUTATIONS, PACKAGE


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_what_a_mutation_takes_out_is_there(mutation):
    assert mutation.old in (PACKAGE / mutation.file).read_text()
    assert mutation.old != mutation.new
