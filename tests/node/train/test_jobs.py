"""A round teaches the round's subspace and nothing else; what it returns is what the protocol expects."""

import json

import numpy as np
import pytest
import torch

from sterna.errors import ConfigError, DataError, WorkerFailed
from sterna.train import step
from sterna.train.base import open_base
from sterna.train.evaluate import held_out_loss
from sterna.train.jobs import Workshop
from sterna.train.lora import Lora, float_state, lora_of_round
from sterna.train.model import Keeping
from sterna.train.step import keeping_within, rate_at, train_round
from sterna_protocol.errors import MalformedMessage
from sterna_protocol.merge.adapter import Adapter, encode_adapter, genesis_adapter
from sterna_protocol.merge.codec import decode_delta, delta_blob_bytes, dequantise
from sterna_protocol.merge.feedback import Unsent
from sterna_protocol.merge.scheme import delta_size
from tests.node.train.tiny import charter_for, write_text, write_tiny_base

AUTHOR = bytes(range(32))


@pytest.fixture
def workshop(tmp_path) -> Workshop:
    return opened(tmp_path)


def opened(folder, **options) -> Workshop:
    settings = {"backward": "int8x2", "activation_bytes": 1 << 30} | options
    return Workshop(write_tiny_base(folder), **settings)


def shape_of(workshop: Workshop):
    return workshop._decoder.architecture


def trained(
    workshop, charter, data, *, adapter=None, round_=0, seed=0, progress=lambda *_: None, unsent=None
):
    blob = encode_adapter(charter, adapter or genesis_adapter(charter))
    return workshop.train(
        charter,
        blob,
        round_=round_,
        author=AUTHOR,
        data=data,
        seed=seed,
        progress=progress,
        unsent=unsent,
    )


@pytest.mark.parametrize("codec", ["int8", "int4", "ternary"])
@pytest.mark.parametrize("scheme", ["fixed", "cycle", "pair"])
def test_a_round_learns_and_returns_the_charters_delta(workshop, tmp_path, scheme, codec):
    charter = charter_for(shape_of(workshop), scheme=scheme, codec=codec, steps=8, rate_micros=5000)
    seen = []
    result = trained(workshop, charter, write_text(tmp_path), progress=lambda *what: seen.append(what))
    assert result.loss_after < result.loss_before - 0.1
    assert len(result.delta_blob) == delta_blob_bytes(charter)
    assert dequantise(decode_delta(charter, author=AUTHOR, round_=0, data=result.delta_blob)).any()
    assert [(done, in_all) for done, in_all, _ in seen] == [(number, 8) for number in range(1, 9)]
    assert result.trained.steps == 8


def test_the_same_seed_gives_the_same_delta_and_another_seed_another(workshop, tmp_path):
    charter = charter_for(shape_of(workshop))
    data = write_text(tmp_path)
    first, again = (trained(workshop, charter, data, seed=1).delta_blob for _ in range(2))
    assert first == again
    assert trained(workshop, charter, data, seed=2).delta_blob != first


def test_the_delta_is_what_the_values_moved_by(workshop, tmp_path):
    charter = charter_for(shape_of(workshop), scheme="pair", codec="int8")
    previous = genesis_adapter(charter)
    corpus = workshop._corpus(data := write_text(tmp_path))
    lora = lora_of_round(charter.adapter, float_state(previous), 0)
    train_round(workshop._decoder, workshop._head, lora, [corpus], charter.recipe, seed=0, round_=0)
    moved = lora.values.numpy() - float_state(previous)[0]
    blob = trained(workshop, charter, data).delta_blob
    got = dequantise(decode_delta(charter, author=AUTHOR, round_=0, data=blob))
    # An int8 code is off by half a step, and a block's step is at most 1/64 of its largest value.
    assert np.abs(got - moved).max() <= np.abs(moved).max() / 64
    assert np.abs(got - moved).mean() <= np.abs(moved).mean() / 10


def test_other_subspaces_act_but_do_not_change(workshop, tmp_path):
    charter = charter_for(shape_of(workshop), steps=2)
    data = write_text(tmp_path)
    rng = np.random.default_rng(0)
    state = rng.integers(-(2**19), 2**19, (3, delta_size(charter.adapter))).astype(np.int32)
    state[1] = 0
    other = trained(workshop, charter, data, adapter=Adapter(state), round_=1)
    assert other.loss_before != trained(workshop, charter, data, round_=1).loss_before
    corpus = workshop._corpus(data)
    lora = lora_of_round(charter.adapter, before := float_state(Adapter(state)), 1)
    frozen = before.copy()
    factors = {name: found.b[:, 4:].clone() for name, found in lora._factors.items()}
    train_round(workshop._decoder, workshop._head, lora, [corpus], charter.recipe, seed=0, round_=1)
    assert np.array_equal(before, frozen)
    assert lora.values.numpy().any()
    for name, found in lora._factors.items():
        assert (found.b[:, 4:] == factors[name]).all()


def test_training_alone_takes_the_same_first_round_and_cycles(workshop, tmp_path):
    charter = charter_for(shape_of(workshop), steps=4, codec="int8")
    data = write_text(tmp_path)
    losses = workshop.train_alone(
        charter,
        rounds=4,
        data=[data],
        held_out=[data],
        seed=0,
        sequences_factor=1,
        every_round=True,
        progress=lambda *_: None,
    )
    assert len(losses) == 5
    assert losses[0].loss == workshop.evaluate(charter, None, [data]).loss
    assert losses[1].loss == pytest.approx(trained(workshop, charter, data).loss_after, abs=1e-6)
    assert losses[4].loss < losses[2].loss < losses[0].loss


def test_training_alone_keeps_what_each_subspace_learned(workshop, tmp_path):
    charter = charter_for(shape_of(workshop), steps=2)
    corpus = workshop._corpus(data := write_text(tmp_path))
    state = float_state(genesis_adapter(charter))
    for round_ in range(5):  # three subspaces: the first two have a second turn
        lora = lora_of_round(charter.adapter, state, round_)
        train_round(workshop._decoder, workshop._head, lora, [corpus], charter.recipe, seed=3, round_=round_)
        state[round_ % 3] = lora.values.numpy()
    expected = held_out_loss(
        workshop._decoder, workshop._head, Lora(charter.adapter, state, trained=None), [corpus], length=32
    )
    losses = workshop.train_alone(
        charter,
        rounds=5,
        data=[data],
        held_out=[data],
        seed=3,
        sequences_factor=1,
        every_round=False,
        progress=lambda *_: None,
    )
    assert losses == (expected,)


def test_the_optimiser_is_torchs_adamw_without_decay():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(50, generator=generator)
    theirs = torch.nn.Parameter(values.clone())
    adamw = torch.optim.AdamW([theirs], lr=0.01, betas=step.BETAS, eps=step.EPSILON, weight_decay=0.0)
    ours = step.AdamW(values)
    for _ in range(5):
        theirs.grad = torch.randn(50, generator=generator)
        ours.step(theirs.grad, rate=0.01)
        adamw.step()
    assert torch.allclose(values, theirs.detach(), rtol=1e-5, atol=1e-7)


def test_long_gradients_are_shortened_and_short_ones_kept(workshop, tmp_path, monkeypatch):
    charter = charter_for(shape_of(workshop), steps=1)
    corpus = workshop._corpus(write_text(tmp_path))
    norms = []
    for limit in (1e-3, 1e9):
        monkeypatch.setattr(step, "MAX_GRADIENT_NORM", limit)
        lora = lora_of_round(charter.adapter, float_state(genesis_adapter(charter)), 0)
        train_round(workshop._decoder, workshop._head, lora, [corpus], charter.recipe, seed=0, round_=0)
        norms.append(lora.gradient.norm().item())
    assert norms[0] == pytest.approx(1e-3)
    assert norms[1] > 1e-2


def test_more_sequences_a_step_read_more_tokens(workshop, tmp_path):
    charter = charter_for(shape_of(workshop), steps=1)
    corpus = workshop._corpus(write_text(tmp_path))
    taken = []
    for factor in (1, 3):
        lora = lora_of_round(charter.adapter, float_state(genesis_adapter(charter)), 0)
        taken.append(
            train_round(
                workshop._decoder,
                workshop._head,
                lora,
                [corpus],
                charter.recipe,
                seed=0,
                round_=0,
                sequences_factor=factor,
            ).tokens
        )
    assert 2.5 <= taken[1] / taken[0] <= 3.5


def test_gradients_add_up_over_micro_batches(workshop, tmp_path, monkeypatch):
    charter = charter_for(shape_of(workshop), steps=1, sequences=5)
    corpus = workshop._corpus(write_text(tmp_path))
    gradients = []
    for limit in (2048, 64, 1):
        monkeypatch.setattr(step, "MICRO_BATCH_TOKENS", limit)
        lora = lora_of_round(charter.adapter, float_state(genesis_adapter(charter)), 0)
        train_round(workshop._decoder, workshop._head, lora, [corpus], charter.recipe, seed=0, round_=0)
        gradients.append(lora.gradient.numpy().copy())
    for gradient in gradients[1:]:
        assert np.abs(gradient - gradients[0]).max() <= 1e-4 * np.abs(gradients[0]).max()


def test_the_loss_of_several_files_is_over_all_their_tokens(workshop, tmp_path):
    charter = charter_for(shape_of(workshop))
    paths = [write_text(tmp_path, name="a.jsonl"), write_text(tmp_path, documents=90, name="b.jsonl")]
    both, one, other = (workshop.evaluate(charter, None, some) for some in (paths, paths[:1], paths[1:]))
    assert both.tokens == one.tokens + other.tokens
    assert both.loss == pytest.approx((one.loss * one.tokens + other.loss * other.tokens) / both.tokens)
    assert both.by_file == (one.loss, other.loss)


def test_the_loss_of_a_conversation_is_that_of_the_answers_alone(workshop, tmp_path):
    charter = charter_for(shape_of(workshop))
    short, long = tmp_path / "short.jsonl", tmp_path / "long.jsonl"
    for path, prompt in ((short, "q"), (long, "a longer question")):
        rows = [{"prompt": prompt, "completion": f"answer {number}"} for number in range(20)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for path in (short, long):
        held_out = workshop._corpus(path).held_out
        assert workshop.evaluate(charter, None, [path]).tokens == sum(int(d.counts.sum()) for d in held_out)


def test_a_file_that_changed_is_read_again(workshop, tmp_path):
    path = write_text(tmp_path)
    before = workshop._corpus(path)
    assert workshop._corpus(path) is before
    write_text(tmp_path, documents=31)
    assert len(workshop._corpus(path).train) + len(workshop._corpus(path).held_out) == 31
    assert len(workshop._corpora) == 1


def test_training_that_diverges_is_stopped(workshop, tmp_path):
    charter = charter_for(shape_of(workshop), steps=20, rate_micros=10_000_000)
    charter = charter.model_copy(
        update={"recipe": charter.recipe.model_copy(update={"learning_rate_micros": 10**30})}
    )
    lora = lora_of_round(charter.adapter, float_state(genesis_adapter(charter)), 0)
    corpus = workshop._corpus(write_text(tmp_path))
    with pytest.raises(
        WorkerFailed, match=r"the loss is nan at step \d+: learning_rate_micros .* is too high"
    ):
        train_round(workshop._decoder, workshop._head, lora, [corpus], charter.recipe, seed=0, round_=0)


def test_bad_data_is_refused_before_anything_is_trained(workshop, tmp_path):
    charter = charter_for(shape_of(workshop))
    (tmp_path / "bad.jsonl").write_text('{"text": "good"}\n{"txt": "bad"}\n')
    steps = []
    with pytest.raises(DataError, match=r"bad\.jsonl:2: has 'txt'; it needs"):
        trained(workshop, charter, tmp_path / "bad.jsonl", progress=lambda *what: steps.append(what))
    with pytest.raises(DataError, match=r"none\.txt: cannot be read"):
        trained(workshop, charter, tmp_path / "none.txt")
    assert not steps


def test_a_charter_of_another_base_is_refused(workshop, tmp_path):
    charter = charter_for(open_base(write_tiny_base(tmp_path, seed=1, ffn_size=96)).architecture)
    with pytest.raises(ConfigError, match=r"the charter adapts gate \[96, 48\], the base has \(80, 48\)"):
        workshop.evaluate(charter, None, [write_text(tmp_path)])
    charter = charter_for(open_base(write_tiny_base(tmp_path, seed=1, layers=3)).architecture)
    with pytest.raises(ConfigError, match="the charter adapts 3 layers, the base has 2"):
        workshop.evaluate(charter, None, [write_text(tmp_path)])
    charter = charter_for(shape_of(workshop), length=65)
    with pytest.raises(ConfigError, match="the charter trains 65 tokens a sequence, the base reads 64"):
        workshop.evaluate(charter, None, [write_text(tmp_path)])


def test_an_adapter_of_another_swarm_is_refused(workshop, tmp_path):
    charter = charter_for(shape_of(workshop))
    with pytest.raises(MalformedMessage):
        workshop.evaluate(charter, bytes(100), [write_text(tmp_path)])


def test_the_rate_warms_up_and_stays(tmp_path):
    recipe = charter_for(open_base(write_tiny_base(tmp_path)).architecture).recipe
    recipe = recipe.model_copy(update={"warmup_steps": 3, "learning_rate_micros": 8000})
    assert [rate_at(recipe, number) for number in range(6)] == pytest.approx(
        [0.002, 0.004, 0.006, 0.008, 0.008, 0.008]
    )


def test_activations_that_do_not_fit_are_rounded_and_then_recomputed(workshop):
    recipe = charter_for(shape_of(workshop)).recipe
    tokens = recipe.sequences_per_step * recipe.tokens_per_sequence
    exact, rounded = (
        workshop._decoder.activation_bytes(tokens, rounded=rounded) for rounded in (False, True)
    )
    assert rounded < exact
    expected = {
        0: Keeping(rounded=True, recomputed=2),
        rounded: Keeping(rounded=True, recomputed=1),
        2 * rounded: Keeping(rounded=True),
        8 * 2 * exact - 1: Keeping(rounded=True),
        8 * 2 * exact: Keeping(),
    }
    for budget, keeping in expected.items():
        assert keeping_within(workshop._decoder, recipe, budget_bytes=budget) == keeping


def test_what_a_sparse_delta_leaves_out_is_sent_with_the_next_one(workshop, tmp_path):
    charter = charter_for(shape_of(workshop), codec="top2", steps=4)
    data = write_text(tmp_path)
    first = trained(workshop, charter, data)
    learned = np.frombuffer(first.total, "<f4")
    sent = dequantise(decode_delta(charter, author=AUTHOR, round_=0, data=first.delta_blob))
    assert 0 < np.count_nonzero(sent) < learned.size / 16
    assert 1.3 < np.dot(sent, learned) / np.square(learned[sent != 0]).sum() < 1.7
    again = trained(workshop, charter, data, unsent=Unsent(0, first.total, first.delta_blob))
    total = np.frombuffer(again.total, "<f4")
    # The same training once more, and what the first delta left out.
    np.testing.assert_allclose(total, learned + (learned - sent), atol=1e-6)
    assert again.delta_blob != first.delta_blob
    whole = trained(workshop, charter, data, unsent=Unsent(0, first.total, None))
    np.testing.assert_allclose(np.frombuffer(whole.total, "<f4"), 2 * learned, atol=1e-6)


def test_a_dense_delta_leaves_nothing_behind(workshop, tmp_path):
    result = trained(workshop, charter_for(shape_of(workshop)), write_text(tmp_path))
    assert result.total is None
