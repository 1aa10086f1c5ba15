"""Talking over a pulled adapter: the base it names is found, and what cannot be is one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sterna.cli import run
from sterna.formats.peft import write_peft
from sterna.train.base import builtin_bases, open_base
from tests.node.store import sample
from tests.node.train.tiny import charter_for

TINY = open_base(builtin_bases()["tiny"])
PROMPT = ["chat", "--prompt", "a tern", "--temperature", "0", "--max-tokens", "8", "--json"]


def adapter(folder: Path, base_name: str) -> Path:
    charter = charter_for(TINY.architecture)
    small = sample.random_adapter(charter)
    # Large enough to say something else.
    large = replace(small, state=small.state * 32)
    write_peft(folder, charter=charter, adapter=large, base_name=base_name)
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STERNA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def answer(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, str]:
    assert run([*PROMPT, *options]) == 0
    told: dict[str, str] = json.loads(capsys.readouterr().out)
    return told


@pytest.mark.real
@pytest.mark.slow
def test_a_pulled_adapter_answers_over_the_base_it_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = adapter(tmp_path / "adapter", TINY.name)
    found = answer(capsys, "--adapter", str(folder))
    assert found["model"] == f"base {TINY.name} with the adapter in {folder}"
    named = answer(capsys, "--adapter", str(folder), "--base", str(TINY.path))
    assert named == found
    assert answer(capsys, "--base", "tiny")["answer"] != found["answer"]


@pytest.mark.real
@pytest.mark.slow
def test_who_answers_is_said_beside_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["chat", "--prompt", "a tern", "--base", "tiny", "--max-tokens", "4"]) == 0
    printed = capsys.readouterr()
    assert printed.err == f"base {TINY.name}, no adapter\n"
    assert TINY.name not in printed.out


def test_a_base_that_is_not_here_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = adapter(tmp_path / "adapter", "huge")
    assert run(["chat", "--adapter", str(folder), "--prompt", "x"]) == 2
    said = capsys.readouterr().err
    assert f"{folder} was made over the base 'huge', which is not here: name its file with --base" in said
    assert said.count("\n") == 1


def test_an_adapter_of_another_base_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = adapter(tmp_path / "adapter", "huge")
    assert run(["chat", "--adapter", str(folder), "--base", "nano", "--prompt", "x"]) == 2
    said = capsys.readouterr().err
    assert "is it over another base than sterna-nano? --base names one" in said and said.count("\n") == 1


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["chat", "--adapter", str(tmp_path), "--prompt", "x"]) == 2
    said = capsys.readouterr().err
    assert "adapter_config.json" in said and said.count("\n") == 1
