"""Blobs: under their digest, whole or absent, and never more than the disk can spare."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna.errors import StorageError
from sterna.store import Blobs, Disk
from sterna.store.blobs import RESERVE_BYTES
from sterna_protocol.wire.chunks import CHUNK_BYTES, blob_digest


def open_blobs(folder: Path, disk: Disk | None = None) -> Blobs:
    blobs = Blobs(folder, disk or Disk(), read_only=False)
    blobs.open()
    return blobs


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return open_blobs(tmp_path / "blobs")


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1])
def test_what_is_put_can_be_read_under_its_digest(blobs: Blobs, size: int) -> None:
    data = os.urandom(size)
    digest = blobs.put(data)
    assert digest == blob_digest(data)
    assert blobs.has(digest)
    assert blobs.read(digest) == data == blobs.path(digest).read_bytes()
    assert blobs.size(digest) == size
    assert blobs.put(data) == digest
    assert list(blobs.digests()) == [digest]
    assert blobs.stored_bytes() == size


def test_the_file_lies_under_the_first_two_digits(blobs: Blobs, tmp_path: Path) -> None:
    name = blob_digest(b"x").hex()
    assert blobs.path(blob_digest(b"x")) == tmp_path / "blobs" / name[:2] / name


@given(st.binary(max_size=40))
def test_no_digest_leads_out_of_the_folder(digest: bytes) -> None:
    blobs = Blobs(Path("/blobs"), Disk(), read_only=False)
    if len(digest) != 32:
        with pytest.raises(ValueError, match="a digest has 32 bytes"):
            blobs.path(digest)
    else:
        assert blobs.path(digest).parent.parent == Path("/blobs")


def test_a_missing_blob_is_named(blobs: Blobs) -> None:
    assert not blobs.has(b"x" * 32)
    with pytest.raises(StorageError, match=(b"x" * 32).hex()):
        blobs.read(b"x" * 32)


@pytest.mark.parametrize("damage", [b"", b"hellO", b"hello!"])
def test_a_damaged_blob_is_noticed_and_removed(blobs: Blobs, damage: bytes) -> None:
    for look in (blobs.read, blobs.check):
        digest = blobs.put(b"hello")
        blobs.path(digest).write_bytes(damage)
        with pytest.raises(StorageError, match="is damaged; it was removed"):
            look(digest)
        assert not blobs.has(digest)


def test_putting_a_damaged_blob_again_heals_it(blobs: Blobs) -> None:
    digest = blobs.put(b"hello")
    blobs.path(digest).write_bytes(b"hellO")
    assert blobs.put(b"hello") == digest
    assert blobs.read(digest) == b"hello"


def test_opening_deletes_what_was_never_finished(blobs: Blobs, tmp_path: Path) -> None:
    digest = blobs.put(b"hello")
    (blobs.path(digest).parent / "half.tmp").write_bytes(b"he")
    again = open_blobs(tmp_path / "blobs")
    assert [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == [again.path(digest)]


def test_collecting_frees_all_but_what_is_kept(blobs: Blobs) -> None:
    keep, drop = blobs.put(b"keep"), blobs.put(b"drop it")
    assert blobs.collect({keep, b"z" * 32}) == len(b"drop it")
    assert (blobs.has(keep), blobs.has(drop)) == (True, False)


def test_collecting_drops_a_download_that_stood_still_for_a_day(blobs: Blobs, tmp_path: Path) -> None:
    (tmp_path / "blobs" / "ab").mkdir()
    paths = [tmp_path / "blobs" / "ab" / f"{name}.partial" for name in ("ab12", "ab34")]
    for path in paths:
        path.write_bytes(b"four")
    os.utime(paths[0], (0, 0))
    assert blobs.collect(set()) == 4
    assert [path.exists() for path in paths] == [False, True]


def test_blobs_leave_room_for_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = open_blobs(tmp_path / "blobs")
    monkeypatch.setattr(Disk, "free_bytes", lambda _self, _path: RESERVE_BYTES + 4)
    with pytest.raises(StorageError, match=r"the disk is full: .* has 64 MiB left"):
        blobs.put(b"hello")
    blobs.put(b"hell")


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EIO, "the disk failed"),
        (errno.EROFS, "cannot be written"),
        (errno.EACCES, "cannot be written"),
    ],
)
def test_a_failing_write_leaves_nothing_behind(tmp_path: Path, code: int, line: str) -> None:
    armed = []

    def before(step: str) -> None:
        if step in armed:
            raise OSError(code, os.strerror(code))

    blobs = open_blobs(tmp_path / "blobs", Disk(before))
    kept = blobs.put(b"kept")
    for step in ("create", "write", "sync", "rename"):
        armed[:] = [step]
        with pytest.raises(StorageError, match=line):
            blobs.put(b"hello")
        armed.clear()
        assert list(blobs.digests()) == [kept]
        assert not list((tmp_path / "blobs").rglob("*.tmp"))
    blobs.put(b"hello")
