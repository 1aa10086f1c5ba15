"""Bases with scales of rows and groups and several planes: what is written comes back, others are refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sterna.errors import ConfigError
from sterna.train.base import builtin_bases, open_base
from sterna.train.base_writer import write_base
from sterna_kernels import TernaryMatrix
from tests.node.train.test_base import (
    SMALL,
    check_holds,
    parts_of,
    scales_of,
    with_facts,
    with_header,
    written,
)
from tests.node.train.tiny import random_planes

KINDS = ("row", "group", "planes")
Q = "layers.0.q"


def planes_of(kind: str, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    return {name: random_planes(rng, (out, in_), kind) for name, out, in_ in SMALL.linears()}


def facts_of(path: Path) -> dict:
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return json.loads(header["__metadata__"]["sterna"])


def with_scale(path: Path, tensor: str, value: float) -> Path:
    """The file with the first scale of ``tensor`` replaced."""
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    start = 8 + length + json.loads(data[8 : 8 + length])[tensor]["data_offsets"][0]
    data[start : start + 4] = np.float32(value).tobytes()
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_scales_and_planes_come_back(tmp_path, kind):
    parts = parts_of(SMALL) | {"matrices": planes_of(kind)}
    check_holds(written(tmp_path, matrices=parts["matrices"]), parts)


@pytest.mark.parametrize("kind", KINDS)
def test_scales_are_views_of_the_mapping(tmp_path, kind):
    base = open_base(written(tmp_path, matrices=planes_of(kind)))
    for name, _, _ in SMALL.linears():
        for plane in base.planes(name):
            assert np.shares_memory(scales_of(plane), base._data)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_parts_give_the_same_bytes(tmp_path, kind):
    first = written(tmp_path, matrices=planes_of(kind)).read_bytes()
    assert written(tmp_path, matrices=planes_of(kind)).read_bytes() == first


def test_one_linear_may_differ_from_the_others(tmp_path):
    mixed = parts_of(SMALL)["matrices"] | {Q: planes_of("planes")[Q]}
    base = open_base(written(tmp_path, matrices=mixed))
    assert [len(base.planes(name)) for name in (Q, "layers.0.k")] == [2, 1]


def test_the_bases_that_ship_keep_their_digests():
    digests = {name: open_base(path).digest.hex() for name, path in builtin_bases().items()}
    assert digests == {
        "nano": "83f4a58875af5f404331c31d20129bb669537f0009e88719ef486d9c99faffc9",
        "tiny": "45583d40a19a14198941a8dfc946de85f9b9ae23f16b4c870ffcde42fb0a15bd",
    }


def test_a_base_with_a_scale_a_matrix_is_written_with_the_bytes_it_always_had(tmp_path):
    shipped = builtin_bases()["tiny"]
    base = open_base(shipped)
    write_base(
        tmp_path / "again",
        architecture=base.architecture,
        matrices={name: base.planes(name) for name, _, _ in base.architecture.linears()},
        vectors={name: base.vector(name) for name, _ in base.architecture.vectors()},
        embedding=base.embedding,
        tokenizer_json=base.tokenizer_json,
        name=base.name,
        provenance=base.provenance,
    )
    assert (tmp_path / "again").read_bytes() == shipped.read_bytes()


def test_a_scale_a_matrix_is_written_as_version_1_and_everything_else_as_version_2(tmp_path):
    assert facts_of(written(tmp_path))["version"] == 1
    for kind in KINDS:
        assert facts_of(written(tmp_path, matrices=planes_of(kind)))["version"] == 2


@pytest.mark.parametrize("kind", KINDS)
def test_bases_that_differ_in_one_scale_have_different_digests(tmp_path, kind):
    path = written(tmp_path, matrices=planes_of(kind))
    before = open_base(path).digest
    last = "layers.1.down.1.scale" if kind == "planes" else "layers.1.down.scale"
    assert open_base(with_scale(path, last, 0.125)).digest != before


def test_bases_that_differ_in_the_scale_of_a_matrix_have_different_digests(tmp_path):
    parts = parts_of(SMALL)["matrices"]
    before = open_base(written(tmp_path)).digest
    codes, scale = parts[Q][0].codes(), parts[Q][0].scale
    other = TernaryMatrix.from_codes(codes, float(np.nextafter(np.float32(scale), np.float32(9))))
    assert open_base(written(tmp_path, matrices=parts | {Q: (other,)})).digest != before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("tensor", [f"{Q}.scale", "layers.1.down.1.scale"])
def test_a_scale_that_is_no_finite_number_is_refused_on_opening(tmp_path, tensor, value):
    path = with_scale(written(tmp_path, matrices=planes_of("planes")), tensor, value)
    with pytest.raises(ConfigError, match=f"{tensor} holds a scale that is not a finite number") as caught:
        open_base(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda q: q.pop("planes"), "planes is missing"),
        (lambda q: q.update(planes={}), "planes is of the wrong type"),
        (lambda q: q.update(planes=[]), "0 planes, not 1 to 4"),
        (lambda q: q.update(planes=q["planes"] * 3), "6 planes, not 1 to 4"),
        (lambda q: q.update(planes=[1.0]), "not an object"),
        (lambda q: q["planes"][0].update(scale=1e39), "scale 1e"),
        (lambda q: q["planes"][1].update(scale="1"), "scale '1'"),
        (lambda q: q["planes"][0].pop("scale"), "scale None"),
        (lambda q: q["planes"][0].update(columns=63), "each 63 of 64 columns"),
        (lambda q: q["planes"][0].update(columns=32), "multiple of 64"),
        (lambda q: q["planes"][0].update(columns=0), "each 0 of 64"),
        (lambda q: q["planes"][0].update(columns=-64), "each -64 of"),
        (lambda q: q["planes"][0].update(columns=128), "each 128 of 64"),
        (lambda q: q["planes"][0].update(columns=64.0), "each 64.0 of"),
        (lambda q: q["planes"][0].update(columns=True), "each True of"),
        (lambda q: q.update(planes=q["planes"] + q["planes"][:1]), f"{Q}.2.codes is missing"),
    ],
)
def test_planes_that_cannot_be_are_refused_in_one_line(tmp_path, change, says):
    path = written(tmp_path, matrices=planes_of("planes"))
    with pytest.raises(ConfigError, match=says) as caught:
        open_base(with_facts(path, lambda facts: change(facts["matrices"][Q])))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda h: h.pop(f"{Q}.1.scale"), "scale is missing"),
        (lambda h: h[f"{Q}.scale"].update(dtype="F16"), "is F16"),
        (lambda h: h[f"{Q}.scale"].update(shape=[63]), "expected F32"),
        (lambda h: h[f"{Q}.scale"].update(data_offsets=[0, 1 << 62]), "outside the file"),
        (lambda h: h[f"{Q}.scale"].update(data_offsets=[0, 64]), "need another number"),
        (lambda h: h["layers.0.down.scale"].update(shape=[128]), "expected F32"),
    ],
)
def test_tensors_of_scales_that_do_not_fit_are_refused_in_one_line(tmp_path, change, says):
    path = with_header(written(tmp_path, matrices=planes_of("planes")), change)
    with pytest.raises(ConfigError, match=says) as caught:
        open_base(path)
    assert "\n" not in str(caught.value)


def test_what_version_2_says_is_no_version_1(tmp_path):
    path = written(tmp_path, matrices=planes_of("row"))
    with pytest.raises(ConfigError, match="scale None"):
        open_base(with_facts(path, lambda facts: facts.update(version=1)))


def test_writing_refuses_planes_that_do_not_fit(tmp_path):
    parts = parts_of(SMALL)["matrices"]
    codes = np.zeros((64, 64), np.int8)
    wide = np.zeros((64, 128), np.int8)
    for matrices, says in (
        (parts | {Q: ()}, f"{Q} is missing"),
        (parts | {Q: (TernaryMatrix.from_codes(wide, 1.0),)}, "has shape"),
        (parts | {Q: (TernaryMatrix.from_codes(codes, 1.0),) * 5}, "5 planes"),
        (parts | {"layers.0.extra": parts[Q]}, "no tensor layers.0.extra.codes"),
    ):
        with pytest.raises(ConfigError, match=says):
            written(tmp_path, matrices=matrices)
    grouped = TernaryMatrix.from_codes(
        np.zeros((64, 192), np.int8), 1.0, group_scales=np.ones((64, 2), np.float32), group_size=128
    )
    odd = parts_of(replace(SMALL, ffn_size=192))
    with pytest.raises(ConfigError, match="each 128 of 192 columns"):
        written(tmp_path, **odd | {"matrices": odd["matrices"] | {"layers.0.down": (grouped,)}})
    assert list(tmp_path.iterdir()) == []
