"""What the benchmark of the kernels reports; never how fast anything is."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest

import sterna_kernels
from sterna.bench import ggml
from sterna.bench.kernels import IN_BFLOAT16, KernelReport, Scope, measure_kernels
from sterna.bench.limits import instruction_limits
from sterna.bench.shares import BFLOAT16, ceiling_of
from sterna.cli.bench_tables import show_kernels
from sterna.errors import ConfigError

VARIANTS = [name for name in sterna_kernels.variants() if name != "scalar"]
SMALL = Scope(repeats=1, layers=1, shapes=((640, 2560),), rows=(17, 1))


@pytest.fixture(scope="module")
def report() -> KernelReport:
    return measure_kernels(SMALL, None, lambda _: None)


@pytest.mark.slow
def test_every_system_has_a_positive_figure_for_every_product(report):
    done = [(f.product.rows, f.product.direction) for f in report.figures]
    assert done == [(17, "forward"), (17, "backward"), (17, "backward x2"), (1, "forward")]
    for figure in report.figures:
        ours = {name for name in figure.gops if not name.startswith("torch")}
        narrow = (
            {name + BFLOAT16 for name in {*VARIANTS} & {*IN_BFLOAT16}} if figure.product.rows > 1 else set()
        )
        assert list(figure.gops)[:3] == ["torch fp32", "torch fp32 avx2", "torch bf16"]
        assert ours == {*VARIANTS} | narrow
        assert all(math.isfinite(gops) and gops > 0 for gops in figure.gops.values())


@pytest.mark.slow
def test_decoding_is_reported_beside_reading_and_without_llama_where_that_is_absent(report):
    assert list(report.decode) == ["read", *VARIANTS]
    assert all(speed > 0 for speed in report.decode.values())
    assert set(report.two_threads) in (set(), set(VARIANTS))


@pytest.mark.slow
def test_the_report_is_json_and_a_table(report, capsys):
    assert json.loads(json.dumps(asdict(report)))["figures"][0]["product"]["n"] == 640
    show_kernels(report)
    printed = capsys.readouterr().out
    assert all(name in printed for name in [*VARIANTS, "reading memory", "torch bf16"])


@pytest.mark.slow
def test_measuring_leaves_the_variant_as_it_was(report):
    assert sterna_kernels.variant() == sterna_kernels.variants()[0]


def test_limits_are_finite_and_positive_and_every_variant_has_one():
    limits = instruction_limits(repeats=1)
    assert all(math.isfinite(gops) and gops > 0 for gops in limits.values())
    assert all(ceiling_of(name, limits) == limits[name] for name in VARIANTS)
    assert ceiling_of("llama TQ2_0", limits) is None


def test_dense_products_have_the_limit_of_the_widest_registers():
    assert ceiling_of("torch fp32", {"fp32 256-bit": 1.0, "fp32 512-bit": 2.0}) == 2.0
    assert ceiling_of("torch fp32", {"fp32 256-bit": 1.0}) == 1.0
    assert ceiling_of("torch fp32 avx2", {"fp32 256-bit": 1.0, "fp32 512-bit": 2.0}) == 1.0
    assert ceiling_of("torch bf16", {"fp32 256-bit": 1.0}) is None


def test_a_variant_has_the_same_limit_whatever_its_rows_are_in():
    assert ceiling_of("amx, bf16", {"fp32 256-bit": 1.0, "amx": 3.0, "amx bf16": 2.0}) == 3.0


def test_a_folder_without_the_libraries_is_refused_in_one_line(tmp_path: Path):
    with pytest.raises(ConfigError, match="give the folder of libggml-base"):
        ggml.Ggml(tmp_path)


def test_llama_is_looked_for_only_where_it_is_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert ggml.installed_libraries() is None
