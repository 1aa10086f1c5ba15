"""Generation equals sampling from the full forward pass, ends where it should and shows whole characters."""

from collections import Counter

import numpy as np
import pytest

from sterna.errors import ConfigError
from sterna.train import generate as module
from sterna.train.base import open_base
from sterna.train.generate import generate
from sterna.train.loss import Head
from sterna.train.model import Decoder
from sterna.train.text import Turn
from sterna.train.tokens import TextCodec
from tests.node.train.tiny import write_tiny_base


@pytest.fixture
def parts(tmp_path):
    base = open_base(write_tiny_base(tmp_path, seed=2))
    return Decoder(base, backward="fp32"), Head(base.head), TextCodec(base.tokenizer_json)


def written(parts, prompt="tern", **changes) -> list[str]:
    decoder, head, codec = parts
    options = {"max_tokens": 12, "temperature": 0.0, "top_p": 1.0, "seed": 0} | changes
    ids = prompt if isinstance(prompt, list) else codec.prompt(prompt)
    return list(generate(decoder, head, None, codec, ids, **options))


def test_greedy_text_is_the_likeliest_token_of_the_full_pass_each_time(parts):
    decoder, head, codec = parts
    ids = codec.prompt("tern")
    start = len(ids)
    for _ in range(12):
        token = int(head.logits(decoder.hidden(np.array([ids]))[:, -1])[0].argmax())
        if token in codec.stop_ids:
            break
        ids.append(token)
    assert "".join(written(parts)) == codec.decode(ids[start:])


def test_the_seed_chooses_the_text(parts):
    first = written(parts, temperature=1.0)
    assert first == written(parts, temperature=1.0)
    assert any(first != written(parts, temperature=1.0, seed=seed) for seed in range(1, 4))


def test_a_conversation_is_answered(parts):
    codec = parts[2]
    assert written(parts, codec.prompt([Turn("user", "hi")]))


def test_it_ends_at_a_stop_token_and_does_not_show_it(parts, monkeypatch):
    codec = parts[2]
    script = [codec._tokenizer.encode(letter).ids[0] for letter in "ab"] + [*codec.stop_ids] + [9] * 9
    monkeypatch.setattr(module, "_drawn", lambda *_, **__: script.pop(0))
    assert written(parts) == ["a", "b"]


def test_it_ends_where_the_context_is_full(parts, monkeypatch):
    letter = parts[2]._tokenizer.encode("a").ids[0]
    monkeypatch.setattr(module, "_drawn", lambda *_, **__: letter)
    assert written(parts, max_tokens=1000) == ["a"] * (64 - len(parts[2].prompt("tern")))


def test_a_character_of_several_tokens_is_shown_once_it_is_whole(parts, monkeypatch):
    codec = parts[2]
    script = codec._tokenizer.encode("é€x").ids
    assert len(script) == 6
    monkeypatch.setattr(module, "_drawn", lambda *_, **__: script.pop(0))
    assert written(parts, max_tokens=6) == ["é", "€", "x"]


@pytest.mark.parametrize(
    "changes", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"max_tokens": 0}], ids=str
)
def test_options_out_of_range_are_refused(parts, changes):
    with pytest.raises(ConfigError, match="needed are temperature >= 0"):
        written(parts, **changes)


def test_prompts_that_are_empty_or_too_long_are_refused(parts):
    for prompt in ([], [5] * 64):
        with pytest.raises(
            ConfigError, match=rf"the prompt has {len(prompt)} tokens; this base takes 1 to 63"
        ):
            written(parts, prompt)


def test_tokens_are_drawn_with_their_probability_inside_the_nucleus():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    rng = np.random.default_rng(0)

    def shares(**options):
        drawn = Counter(module._drawn(logits, rng=rng, **options) for _ in range(4000))
        return [drawn[token] / 4000 for token in range(4)]

    assert shares(temperature=1.0, top_p=1.0) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)
    assert shares(temperature=1.0, top_p=0.75) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)
    assert shares(temperature=0.5, top_p=1.0) == pytest.approx([0.685, 0.247, 0.062, 0.007], abs=0.03)
    assert module._drawn(logits, rng=rng, temperature=0.0, top_p=0.1) == 0
