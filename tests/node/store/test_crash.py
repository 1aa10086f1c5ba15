"""A node that is stopped anywhere comes back knowing what it promised (longer: crash.py, powercut.py)."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sterna.errors import StorageError
from sterna.store import Disk, open_store
from tests.node.store.crash import SWARM, Told, check, live


class Failing:
    """Answers ``code`` to change number ``step`` (from 1), and with ``lasting`` to all after it."""

    def __init__(self, step: int, code: int, *, lasting: bool) -> None:
        self.count = 0
        self._step = step
        self._code = code
        self.lasting = lasting

    def __call__(self, name: str) -> None:
        self.count += 1
        if self.count == self._step or (self.lasting and self.count > self._step):
            raise OSError(self._code, os.strerror(self._code), name)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("lasting", [True, False])
def test_a_disk_that_fails_at_any_change_loses_nothing_acknowledged(
    folder: Path, code: int, lasting: bool
) -> None:
    count = Failing(0, code, lasting=False)
    live(folder / "whole", Disk(count), lambda _line: None, mood=0, rounds=1)
    assert count.count > 50
    for step in range(1, count.count + 1):
        home, told = folder / str(step), Told()
        try:
            live(home, Disk(Failing(step, code, lasting=lasting)), told.hear, mood=1, rounds=1)
        except StorageError as error:
            assert "\n" not in str(error), step
        assert check(home, told) == [], step
        # Space is back: the same node goes on, wishing to say something else.
        live(home, Disk(), told.hear, mood=2, rounds=1)
        assert check(home, told) == [], step
        shutil.rmtree(home)


def test_a_node_on_a_full_disk_can_still_be_read(folder: Path) -> None:
    live(folder / "home", Disk(), lambda _line: None, mood=1, rounds=2)
    full = Failing(0, errno.ENOSPC, lasting=False)
    with open_store(folder / "home", disk=Disk(full)) as store:
        full.lasting = True
        with pytest.raises(StorageError, match="the disk is full"):
            store.put_own(SWARM, 9, 0, 1, b"x")
        with pytest.raises(StorageError, match="the disk is full"):
            store.blobs.put(b"x")
        assert len(store.certificates(SWARM)) == 2
        assert len(store.own_frames(SWARM, 1)) == 8
        pending = store.pending(SWARM)
        assert pending is not None
        store.blobs.read(pending.delta)


@pytest.mark.slow
def test_a_killed_node_forgets_nothing_and_never_contradicts_itself(folder: Path) -> None:
    # Every step of the store; each ninth system call, killed, torn, full and failed; random kills on top.
    calls_every = 9 if shutil.which("cc") else 0
    command = ["-m", "tests.node.store.crash", "--kills", "40", "--calls-every", str(calls_every)]
    outcome = subprocess.run(
        [sys.executable, *command, "--folder", str(folder)], capture_output=True, text=True, check=False
    )
    report = json.loads(outcome.stdout) if outcome.stdout else {}
    assert (outcome.returncode, report.get("wrong")) == (0, []), outcome.stderr
    assert report["steps"] > 50
    assert report["random"] >= 40


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_power_cut_takes_nothing_that_was_promised(folder: Path) -> None:
    command = ["-m", "tests.node.store.powercut", "--every", "5", "--draws", "1", "--folder", str(folder)]
    outcome = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    report = json.loads(outcome.stdout) if outcome.stdout else {}
    assert (outcome.returncode, report.get("wrong")) == (0, []), outcome.stderr
    assert report["cuts"] > 100
