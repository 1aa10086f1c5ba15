"""The default charter: the measured settings, each of which a founder may override."""

import inspect

import pytest

from sterna_protocol.merge.codec import delta_blob_bytes
from sterna_protocol.swarm.defaults import default_charter
from tests.support.charters import key, small_charter

BITNET_2B = (
    ("q", 2560, 2560),
    ("k", 640, 2560),
    ("v", 640, 2560),
    ("o", 2560, 2560),
    ("gate", 6912, 2560),
    ("up", 6912, 2560),
    ("down", 2560, 6912),
)


def test_the_merge_rule_is_the_one_that_lost_least_to_poisoners():
    parameters = inspect.signature(default_charter).parameters
    assert (parameters["rule"].default, parameters["trim_percent"].default) == ("clip+filter", 30)


def test_starts_with_the_settings_that_measured_best():
    charter = small_charter(rank=8)
    assert (charter.adapter.scheme, charter.adapter.subspaces, charter.adapter.scale) == ("cycle", 4, 2)
    assert charter.codec == "ternary"
    recipe = charter.recipe
    assert (recipe.steps, recipe.sequences_per_step, recipe.tokens_per_sequence) == (40, 4, 256)
    assert recipe.learning_rate_micros == 16_000


def test_every_choice_is_by_keyword():
    parameters = inspect.signature(default_charter).parameters.values()
    assert {parameter.kind for parameter in parameters} == {inspect.Parameter.KEYWORD_ONLY}


def test_schemes_without_cycling_have_one_subspace():
    assert small_charter(scheme="pair").adapter.subspaces == 1
    assert small_charter(scheme="fixed").adapter.subspaces == 1
    assert small_charter(scheme="cycle", subspaces=8).adapter.subspaces == 8


def test_founders_are_put_in_order():
    peers = (key(1).peer, key(2).peer)
    assert small_charter(founders=peers) == small_charter(founders=peers[::-1])


@pytest.mark.parametrize(("codec", "size"), [("ternary", 1_099_048), ("top2", 261_736)])
def test_a_delta_of_rank_8_on_every_linear_of_a_2b_base_takes_few_bytes(codec, size):
    charter = small_charter(layers=30, linears=BITNET_2B, rank=8, codec=codec)
    assert delta_blob_bytes(charter) == size
