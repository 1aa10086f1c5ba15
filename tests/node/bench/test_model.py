"""The benchmark of the model step gives every figure it promises, with or without rivals."""

import numpy as np
import pytest

from sterna.bench import model as module
from sterna.bench.model import JOBS, Choices, measure_model
from sterna.bench.random_base import write_random_base
from sterna.bench.shapes import SHAPES
from sterna.errors import ConfigError
from sterna.train.base import open_base
from tests.node.train.tiny import architecture


def silent(_: str) -> None:
    pass


def test_a_random_base_is_a_whole_base_with_weights_of_all_three_values(tmp_path):
    for tied in (True, False):
        shape = architecture(tied_embeddings=tied, hidden_size=33, ffn_size=7, head_size=10)
        write_random_base(tmp_path / "random.sterna", shape, name="random")
        base = open_base(tmp_path / "random.sterna")
        for name, out, in_ in shape.linears():
            codes = base.planes(name)[0].codes()
            assert codes.shape == (out, in_)
            assert set(np.unique(codes)) == {-1, 0, 1}


def test_the_same_seed_gives_the_same_file(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_random_base(tmp_path / name, architecture(), name="random", seed=seed)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_the_shapes_have_the_parameters_they_are_named_for():
    for name, billions in {"1b": 1.3, "2b": 2.4, "7b": 6.7, "13b": 13.0}.items():
        shape = SHAPES[name]
        rows = shape.vocab_size * shape.hidden_size * (1 if shape.tied_embeddings else 2)
        count = rows + sum(out * in_ for _, out, in_ in shape.linears())
        assert count / 1e9 == pytest.approx(billions, abs=0.06)


@pytest.mark.slow
def test_every_figure_of_ours_is_there_when_no_rival_is(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    choices = Choices(shape="nano", tokens=16, threads=1, repeats=1)
    report = measure_model(choices, silent)
    assert report.rivals == {}
    assert set(report.ours.seconds) == set(report.ours.cpu_seconds) == {*JOBS, "products", "products_1"}
    assert all(seconds > 0 for seconds in report.ours.cpu_seconds.values())
    assert report.ours.peak_bytes > report.base_bytes
    assert report.open_seconds > 0
    assert 0 < report.second_process["proportional_bytes"] < report.second_process["resident_bytes"]


@pytest.mark.slow
def test_a_rival_measured_by_a_few_layers_gets_times_for_all(monkeypatch):
    monkeypatch.setattr(module, "MEASURED_LAYERS", 1)
    choices = Choices(
        shape="nano", tokens=16, threads=1, repeats=1, rivals=("bf16",), whole=False, amx=False, memory=False
    )
    report = measure_model(choices, silent)
    rival = report.rivals["bf16"]
    assert rival.failed is None
    assert rival.layers == 2
    assert set(rival.seconds) == set(JOBS)
    assert report.ours.facts["variant"] != "amx"


def test_unknown_shapes_and_rivals_are_refused():
    with pytest.raises(ConfigError, match="shape '3b': choose one of nano, 1b"):
        measure_model(Choices(shape="3b"), silent)
    with pytest.raises(ConfigError, match="rival 'jax': choose from bf16"):
        measure_model(Choices(shape="nano", rivals=("jax",)), silent)
