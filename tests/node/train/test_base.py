"""Base files: what is written comes back as views of one mapping; broken files are refused in one line."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from sterna.errors import ConfigError, StorageError
from sterna.train.base import Architecture, builtin_bases, open_base
from sterna.train.base_layout import ALIGNMENT, MAX_HEADER_BYTES
from sterna.train.base_writer import write_base
from sterna_kernels import TernaryMatrix
from sterna_protocol.wire.chunks import blob_digest

SMALL = Architecture(
    vocab_size=80,
    hidden_size=64,
    layers=2,
    heads=4,
    kv_heads=2,
    head_size=16,
    ffn_size=128,
    rope_theta=10000.0,
    norm_eps=1e-5,
    activation="relu2",
    sub_norms=True,
    gated=True,
    tied_embeddings=True,
    max_context=32,
)


def parts_of(architecture: Architecture, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)

    def rows():
        shape = (architecture.vocab_size, architecture.hidden_size)
        return rng.integers(-127, 128, shape, np.int8), rng.random(architecture.vocab_size, np.float32)

    return {
        "architecture": architecture,
        "matrices": {
            name: (TernaryMatrix.from_codes(rng.integers(-1, 2, (out, in_), np.int8), rng.random() + 0.1),)
            for name, out, in_ in architecture.linears()
        },
        "vectors": {name: rng.random(size, np.float32) for name, size in architecture.vectors()},
        "embedding": rows(),
        "head": None if architecture.tied_embeddings else rows(),
        "tokenizer_json": b'{"version":"1.0"}',
        "name": "small",
        "provenance": "made up",
    }


def written(folder: Path, **changes) -> Path:
    path = folder / "small.sterna"
    write_base(path, **(parts_of(SMALL) | changes))
    return path


def with_header(path: Path, change) -> Path:
    """The file with ``change`` applied to its header object and everything else as it was."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return path


def with_facts(path: Path, change) -> Path:
    def apply(header):
        facts = json.loads(header["__metadata__"]["sterna"])
        change(facts)
        header["__metadata__"]["sterna"] = json.dumps(facts)

    return with_header(path, apply)


def scales_of(plane: TernaryMatrix) -> np.ndarray:
    """One a row and group; a scale a row is one group."""
    if plane.group_scales is not None:
        return plane.group_scales
    return np.ones((1, 1)) if plane.row_scales is None else plane.row_scales[:, None]


def check_holds(path: Path, parts: dict) -> None:
    base = open_base(path)
    assert (base.architecture, base.name, base.provenance) == (parts["architecture"], "small", "made up")
    assert base.tokenizer_json == parts["tokenizer_json"]
    for name, planes in parts["matrices"].items():
        for found, plane in zip(base.planes(name), planes, strict=True):
            assert np.array_equal(found.codes(), plane.codes())
            assert found.scale == plane.scale
            assert np.array_equal(scales_of(found), scales_of(plane))
    for name, vector in parts["vectors"].items():
        assert np.array_equal(base.vector(name), vector)
    for found, given_rows in (
        (base.embedding, parts["embedding"]),
        (base.head, parts["head"] or parts["embedding"]),
    ):
        assert np.array_equal(found[0], given_rows[0])
        assert np.array_equal(found[1], given_rows[1])


def test_what_is_written_comes_back(tmp_path):
    check_holds(written(tmp_path), parts_of(SMALL))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    vocab=st.integers(1, 70),
    hidden=st.integers(1, 70),
    ffn=st.integers(1, 70),
    heads=st.sampled_from([(1, 1), (3, 1), (4, 2)]),
    half_head=st.integers(1, 9),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_odd_sizes_come_back_too(tmp_path, vocab, hidden, ffn, heads, half_head, flags):
    odd = Architecture(
        vocab_size=vocab,
        hidden_size=hidden,
        layers=1,
        heads=heads[0],
        kv_heads=heads[1],
        head_size=2 * half_head,
        ffn_size=ffn,
        rope_theta=1e4,
        norm_eps=1e-6,
        activation="silu",
        sub_norms=flags[0],
        gated=flags[1],
        tied_embeddings=flags[2],
        max_context=8,
    )
    path = tmp_path / "odd.sterna"
    write_base(path, **parts_of(odd))
    check_holds(path, parts_of(odd))


def test_the_same_parts_give_the_same_bytes(tmp_path):
    first = written(tmp_path).read_bytes()
    assert written(tmp_path).read_bytes() == first


def test_any_safetensors_reader_can_open_it(tmp_path):
    parts = parts_of(SMALL)
    with safe_open(written(tmp_path), "np") as file:
        assert np.array_equal(file.get_tensor("final_norm"), parts["vectors"]["final_norm"])
        assert np.array_equal(file.get_tensor("embedding.codes"), parts["embedding"][0])
        assert json.loads(file.metadata()["sterna"])["name"] == "small"


def test_arrays_are_read_only_views_of_one_mapping(tmp_path):
    base = open_base(written(tmp_path))
    arrays = [base.planes("layers.1.down")[0].packed, base.vector("final_norm"), *base.embedding]
    for array in arrays:
        assert not array.flags.owndata
        assert not array.flags.writeable
        assert np.shares_memory(array, base._data)
        assert array.ctypes.data % ALIGNMENT == 0


def test_views_outlive_the_base(tmp_path):
    vector = open_base(written(tmp_path)).vector("final_norm")
    assert np.array_equal(vector, parts_of(SMALL)["vectors"]["final_norm"])


def test_the_digest_is_the_blob_digest_and_a_known_one_is_kept(tmp_path):
    path = written(tmp_path)
    assert open_base(path).digest == blob_digest(path.read_bytes())
    assert open_base(path, digest=bytes(32)).digest == bytes(32)


def test_linears_stand_in_canonical_order():
    assert [name for name, _, _ in SMALL.linears()[:8]] == [
        *(f"layers.0.{linear}" for linear in ("q", "k", "v", "o", "gate", "up", "down")),
        "layers.1.q",
    ]
    assert {name: (out, in_) for name, out, in_ in SMALL.linears()}["layers.1.down"] == (64, 128)


def test_unknown_names_are_key_errors(tmp_path):
    base = open_base(written(tmp_path))
    with pytest.raises(KeyError):
        base.planes("layers.9.q")
    with pytest.raises(KeyError):
        base.vector("embedding.codes")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda h: h.pop("final_norm"), "final_norm is missing"),
        (lambda h: h["final_norm"].update(dtype="F16"), "final_norm is F16"),
        (lambda h: h["final_norm"].update(shape=[63]), "expected F32"),
        (lambda h: h["final_norm"].update(data_offsets=[0, 1 << 62]), "outside the file"),
        (lambda h: h["final_norm"].update(data_offsets=[-64, 192]), "outside the file"),
        (lambda h: h["final_norm"].update(data_offsets=[64, 64]), "need another number"),
        (lambda h: h["final_norm"].update(data_offsets=[4, 260]), "multiple of 64"),
        (lambda h: h["final_norm"].update(data_offsets=[0.0, 256.0]), "offsets"),
        (lambda h: h["tokenizer.json"].update(data_offsets=[256, 64]), "outside the file"),
        (lambda h: h.pop("__metadata__"), "__metadata__ is missing"),
        (lambda h: h["__metadata__"].update(sterna="{"), "not JSON"),
        (lambda h: h["__metadata__"].update(sterna="[" * 100_000), "nested too deeply"),
        (lambda h: h["__metadata__"].update(sterna='{"version":NaN}'), "NaN"),
        (lambda h: h["__metadata__"].update(sterna='{"version":1,"version":1}'), "twice"),
    ],
)
def test_a_broken_header_is_refused_in_one_line(tmp_path, change, says):
    path = with_header(written(tmp_path), change)
    with pytest.raises(ConfigError, match=says) as caught:
        open_base(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.update(version=3), "version 3, this release reads 1 and 2"),
        (lambda f: f.pop("architecture"), "architecture is missing"),
        (lambda f: f["architecture"].update(layers=10**9), "layers is 1000000000"),
        (lambda f: f["architecture"].update(layers=3), "layers.2.q is missing"),
        (lambda f: f["architecture"].update(heads=True), "heads is True"),
        (lambda f: f["architecture"].update(heads=3), "multiple of kv heads"),
        (lambda f: f["architecture"].update(hidden_size=128), "needs"),
        (lambda f: f["architecture"].update(norm_eps=0), "norm_eps is 0"),
        (lambda f: f["architecture"].update(rope_theta=10**400), "rope_theta is 1000"),
        (lambda f: f.update(name="\ud800"), "printable"),
        (lambda f: f.update(provenance="\x1b[2J"), "printable"),
        (lambda f: f["architecture"].update(activation="gelu"), "gelu"),
        (lambda f: f["architecture"].update(gated=1), "gated is 1"),
        (lambda f: f["architecture"].update(extra=1), "extra"),
        (lambda f: f["matrices"]["layers.0.q"].update(shape=[64, 63]), "layers.0.q has shape"),
        (lambda f: f["matrices"]["layers.0.q"].update(scale="1"), "scale '1'"),
        (lambda f: f["matrices"]["layers.0.q"].update(scale=1e39), "scale 1e"),
    ],
)
def test_broken_facts_are_refused_in_one_line(tmp_path, change, says):
    with pytest.raises(ConfigError, match=says) as caught:
        open_base(with_facts(written(tmp_path), change))
    assert "\n" not in str(caught.value)


def test_a_header_over_the_limit_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "huge.sterna"
    path.write_bytes((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}")
    with pytest.raises(ConfigError, match=f"limit is {MAX_HEADER_BYTES}"):
        open_base(path)


@pytest.mark.parametrize("content", [b"", b"1234567", bytes(8), b"\x40" + bytes(7) + b"{}"])
def test_a_stub_of_a_file_is_refused(tmp_path, content):
    path = tmp_path / "stub.sterna"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="get"):
        open_base(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.binary(max_size=80), tail=st.binary(max_size=20))
def test_any_bytes_are_refused_and_never_crash(tmp_path, header, tail):
    path = tmp_path / "any.sterna"
    path.write_bytes(len(header).to_bytes(8, "little") + header + tail)
    with pytest.raises(ConfigError):
        open_base(path)


def test_a_cut_file_is_refused(tmp_path):
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConfigError, match="outside the file"):
        open_base(path)


def test_a_missing_file_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="No such file"):
        open_base(tmp_path / "none.sterna")


def test_writing_refuses_what_the_architecture_does_not_have_or_lacks(tmp_path):
    parts = parts_of(SMALL)
    norms = parts["vectors"]
    for vectors, says in (
        ({k: v for k, v in norms.items() if k != "final_norm"}, "final_norm is missing"),
        (norms | {"extra": norms["final_norm"]}, "no tensor extra"),
        (norms | {"final_norm": norms["final_norm"][1:]}, "final_norm has shape"),
    ):
        with pytest.raises(ConfigError, match=says):
            written(tmp_path, vectors=vectors)
    with pytest.raises(ConfigError, match="untied"):
        written(tmp_path, architecture=replace(SMALL, tied_embeddings=False))
    assert list(tmp_path.iterdir()) == []


def test_nano_is_built_in_and_opens():
    base = open_base(builtin_bases()["nano"])
    assert base.name == "sterna-nano"
    assert json.loads(base.tokenizer_json)["model"]["type"] == "BPE"
    assert base.path.stat().st_size <= 4 << 20
