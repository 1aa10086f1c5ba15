"""Output for the user: whole or not at all, and never over something else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sterna.errors import ConfigError, StorageError
from sterna.formats import output
from sterna.formats.output import write_directory, write_file

FILES = {"a": b"1", "b": b"2"}


def content(directory: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in directory.iterdir()}


def test_a_directory_is_made_with_its_parents_and_nothing_beside_it(tmp_path: Path) -> None:
    write_directory(tmp_path / "x" / "adapter", FILES)
    assert content(tmp_path / "x" / "adapter") == FILES
    assert [entry.name for entry in (tmp_path / "x").iterdir()] == ["adapter"]


def test_an_older_adapter_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    write_directory(target, FILES)
    write_directory(target, {"a": b"new", "b": b"new"})
    assert content(target) == {"a": b"new", "b": b"new"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["adapter"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    write_directory(tmp_path, FILES)
    assert content(tmp_path) == FILES


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    write_directory(target, FILES)
    (target / "thesis.tex").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"holds 'thesis\.tex', which is no part of an adapter"):
        write_directory(target, FILES)
    assert (target / "thesis.tex").read_bytes() == b"mine"
    (target / "thesis.tex").unlink()
    (target / "a").unlink()
    (target / "a").mkdir()
    with pytest.raises(ConfigError, match="holds 'a'"):
        write_directory(target, FILES)


def test_a_file_or_a_link_in_the_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("file", "link"):
        with pytest.raises(ConfigError, match="is not a folder"):
            write_directory(tmp_path / name, FILES)
    with pytest.raises(ConfigError, match="is a folder; name a file"):
        write_file(tmp_path, b"x")


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "adapter"
    write_directory(target, FILES)
    write_file(tmp_path / "file", b"old")

    def fail(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=r"No space left on device; free some space"):
        write_directory(target, {"a": b"new", "b": b"new"})
    with pytest.raises(StorageError, match="cannot be written"):
        write_file(tmp_path / "file", b"new")
    assert content(target) == FILES
    assert (tmp_path / "file").read_bytes() == b"old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["adapter", "file"]


def test_without_the_exchange_call_the_result_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "_rename_at_once", lambda new, old: False)
    target = tmp_path / "adapter"
    write_directory(target, FILES)
    write_directory(target, {"a": b"new", "b": b"new"})
    assert content(target) == {"a": b"new", "b": b"new"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["adapter"]
