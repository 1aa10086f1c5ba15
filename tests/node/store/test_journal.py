"""The journal file: durable settings, versions, damage, and a disk that fails."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

import pytest

from sterna.errors import StorageError
from sterna.store import Disk
from sterna.store.journal import Journal
from sterna.store.schema import MIGRATIONS


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


def put(journal: Journal, name: str, value: str = "1") -> None:
    with journal.write("the setting was not saved") as db:
        db.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", (name, value))


def names(journal: Journal) -> list[object]:
    return [row[0] for row in journal.read("SELECT name FROM setting ORDER BY name")]


def test_every_commit_reaches_the_disk(path: Path) -> None:
    journal = Journal.open(path, Disk(), read_only=False)
    settings = {name: journal.read(f"PRAGMA {name}")[0][0] for name in ("journal_mode", "synchronous")}
    assert settings == {"journal_mode": "wal", "synchronous": 2}
    assert journal.read("PRAGMA foreign_keys") == [(1,)]
    assert journal.read("PRAGMA user_version") == [(len(MIGRATIONS),)]
    journal.close()


def test_a_write_that_raises_is_not_kept(path: Path) -> None:
    journal = Journal.open(path, Disk(), read_only=False)
    with pytest.raises(KeyError), journal.write("x") as db:
        db.execute("INSERT INTO setting VALUES ('a', '1')")
        raise KeyError
    assert names(journal) == []
    put(journal, "b")
    assert names(journal) == ["b"]
    journal.close()


def test_a_journal_of_a_newer_sterna_is_left_alone(path: Path) -> None:
    Journal.open(path, Disk(), read_only=False).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 1000")
    db.close()
    with pytest.raises(
        StorageError, match=f"has version 1000, this sterna knows {len(MIGRATIONS)}: install a newer"
    ):
        Journal.open(path, Disk(), read_only=False)


def test_another_programs_database_is_left_alone(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA application_id = 7")
    db.close()
    with pytest.raises(StorageError, match="another program's file"):
        Journal.open(path, Disk(), read_only=False)


def test_a_reader_does_not_migrate(path: Path) -> None:
    path.touch()
    with pytest.raises(StorageError, match="start the node once"):
        Journal.open(path, Disk(), read_only=True)


@pytest.mark.parametrize("damage", ["header", "page", "cut"])
def test_a_damaged_journal_is_refused_with_the_way_out(path: Path, damage: str) -> None:
    journal = Journal.open(path, Disk(), read_only=False)
    with journal.write("x") as db:
        db.executemany("INSERT INTO setting VALUES (?, ?)", [(f"{n:04}", "x" * 500) for n in range(200)])
    journal.close()
    data = bytearray(path.read_bytes())
    if damage == "header":
        data[:16] = b"not a database!!"
    elif damage == "page":
        data[-8192:] = b"\x55" * 8192
    else:
        del data[len(data) // 2 :]
    path.write_bytes(data)
    with pytest.raises(StorageError, match=r"is damaged .*start again as a new peer"):
        Journal.open(path, Disk(), read_only=False)


def test_the_log_is_moved_into_the_file_now_and_then(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sterna.store.journal.WRITES_PER_CHECKPOINT", 8)
    steps: list[str] = []
    journal = Journal.open(path, Disk(steps.append), read_only=False)
    steps.clear()
    for number in range(8):
        put(journal, str(number))
    assert steps.count("PRAGMA wal_checkpoint(PASSIVE)") == 1
    journal.close()


class Failing:
    """A disk that answers ``code`` to the steps of one name while ``on``."""

    def __init__(self, step: str, code: int) -> None:
        self.on = False
        self._step = step
        self._code = code

    def __call__(self, step: str) -> None:
        if self.on and step == self._step:
            raise OSError(self._code, os.strerror(self._code))


@pytest.mark.parametrize("step", ["BEGIN IMMEDIATE", "COMMIT"])
def test_a_full_disk_can_be_read_and_written_again_once_there_is_space(path: Path, step: str) -> None:
    failing = Failing(step, errno.ENOSPC)
    journal = Journal.open(path, Disk(failing), read_only=False)
    put(journal, "a")
    failing.on = True
    with pytest.raises(StorageError, match=r"the disk is full .* free some space and try again"):
        put(journal, "b")
    assert names(journal) == ["a"]
    failing.on = False
    put(journal, "c")
    assert names(journal) == ["a", "c"]
    journal.close()


def test_after_a_failed_write_nothing_is_promised_any_more(path: Path) -> None:
    failing = Failing("COMMIT", errno.EIO)
    journal = Journal.open(path, Disk(failing), read_only=False)
    put(journal, "a")
    failing.on = True
    with pytest.raises(StorageError, match="the disk failed"):
        put(journal, "b")
    failing.on = False
    with pytest.raises(StorageError, match="the disk failed earlier"):
        put(journal, "c")
    assert names(journal) == ["a"]
    journal.close()
    again = Journal.open(path, Disk(), read_only=False)
    assert names(again) == ["a"]
    again.close()


def test_a_checkpoint_that_finds_no_space_costs_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sterna.store.journal.WRITES_PER_CHECKPOINT", 8)
    failing = Failing("PRAGMA wal_checkpoint(PASSIVE)", errno.ENOSPC)
    journal = Journal.open(path, Disk(failing), read_only=False)
    failing.on = True
    for number in range(9):
        put(journal, f"{number:04}")
    assert len(names(journal)) == 9
    journal.close()


def test_sqlites_own_full_disk_is_reported_like_any_other(path: Path) -> None:
    journal = Journal.open(path, Disk(), read_only=False)
    pages = journal.read("PRAGMA page_count")[0][0]
    journal.read(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageError, match="the disk is full"):
        put(journal, "a", "x" * 100_000)
    assert names(journal) == []
    journal.close()
