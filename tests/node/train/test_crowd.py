"""Peers trained side by side learn what each would learn alone, from texts that are shared out once."""

from __future__ import annotations

import numpy as np
import pytest

from sterna.errors import DataError
from sterna.train.crowd import Crowd, shared
from sterna.train.delta import learned
from sterna.train.lora import float_state, lora_of_round
from sterna.train.loss import Head
from sterna.train.model import Decoder
from sterna.train.step import train_round
from sterna.train.tokens import Corpus, Tokens
from sterna_protocol.merge.adapter import Adapter
from sterna_protocol.merge.scheme import delta_size
from tests.node.train.tiny import charter_for, tiny_base, write_text


@pytest.fixture
def base(tmp_path):
    return tiny_base(tmp_path)


@pytest.fixture
def texts(tmp_path):
    return [write_text(tmp_path, name=f"{name}.jsonl") for name in ("one", "two")]


def some_adapter(charter) -> Adapter:
    shape = (charter.adapter.subspaces, delta_size(charter.adapter))
    return Adapter(np.random.default_rng(1).integers(-(2**20), 2**20, shape, dtype=np.int32))


def numbered(*sizes: int) -> list[list[Tokens]]:
    """Texts of passages that hold their own number."""
    numbers = iter(range(sum(sizes)))
    return [
        [Tokens(np.full(4, next(numbers), np.int32), np.ones(4, np.bool_)) for _ in range(n)] for n in sizes
    ]


def test_peers_side_by_side_learn_what_each_learns_alone(base, texts):
    charter = charter_for(base.architecture)
    previous = some_adapter(charter)
    crowd = Crowd(base, texts, peers=3, sharing="dirichlet", seed=5)
    together = crowd.train(charter, previous, round_=2, peers=[0, 1, 2], mislabelled=())
    decoder, head = Decoder(base, backward="int8x2"), Head(base.head)
    for peer, ours in enumerate(together):
        lora = lora_of_round(charter.adapter, float_state(previous), 2)
        share = Corpus(train=crowd._shares[peer], held_out=(), masked=False)
        train_round(decoder, head, lora, [share], charter.recipe, seed=5000 + peer, round_=2)
        alone = learned(charter, previous, lora.values.numpy(), 2)
        # Adam's first steps are all of one length: where a gradient is nearly 0, its sign may differ.
        assert np.linalg.norm(ours - alone) < 0.02 * np.linalg.norm(alone)


def test_a_peer_learns_the_same_in_any_company(base, texts):
    charter = charter_for(base.architecture)
    crowd = Crowd(base, texts, peers=3, sharing="source", seed=5)
    batches = [list_of(crowd._batches(peer, charter.recipe, 1, False), 2) for peer in (0, 1, 0)]
    assert np.array_equal(batches[0], batches[2])
    assert not np.array_equal(batches[0], batches[1])


def test_wrong_labels_teach_something_else_from_the_same_text(base, texts):
    charter = charter_for(base.architecture)
    crowd = Crowd(base, texts, peers=2, sharing="dirichlet", seed=5)
    right, wrong = (next(crowd._batches(0, charter.recipe, 1, wrong)) for wrong in (False, True))
    assert np.array_equal(right.inputs, wrong.inputs)
    assert np.array_equal(right.targets + wrong.targets, np.full_like(right.targets, 263))


def test_the_loss_falls_where_peers_train(base, texts):
    charter = charter_for(base.architecture, steps=8)
    crowd = Crowd(base, texts, peers=2, sharing="source", seed=5)
    before = Adapter(np.zeros((charter.adapter.subspaces, delta_size(charter.adapter)), np.int32))
    values = crowd.train(charter, before, round_=0, peers=[0], mislabelled=())[0]
    after = before.state.copy()
    after[0] = np.rint(np.ldexp(values.astype(np.float64), 24))
    assert crowd.loss(charter, Adapter(after)) < crowd.loss(charter, before) - 0.1


@pytest.mark.parametrize("sharing", ["dirichlet", "source"])
def test_no_passage_has_two_owners(sharing):
    shares = shared(numbered(30, 20, 11), 7, sharing, seed=1)
    assert [len(share) for share in shares] == [8] * 7
    owned = [int(passage.ids[0]) for share in shares for passage in share]
    assert len(set(owned)) == len(owned)


def test_by_source_a_peer_has_one_text_as_far_as_it_lasts():
    shares = shared(numbered(40, 40), 4, "source", seed=1)
    texts = [{int(passage.ids[0]) // 40 for passage in share} for share in shares]
    assert texts == [{0}, {1}, {0}, {1}]


def test_more_peers_than_passages_are_refused():
    with pytest.raises(DataError, match="fewer --peers"):
        shared(numbered(2, 1), 4, "source", seed=1)


def list_of(batches, count):
    return np.stack([next(batches).inputs for _ in range(count)])
