"""Cut the power after every change of the disk, lose what was not synced, and look for what was promised.

    python -m tests.node.store.powercut

Two lives of a node are written down call by call (``shim.c``). After each call the disk is played as a power
cut may leave it, and opened:

* ``least``: nothing is there that was not synced, neither bytes nor names;
* ``names``: every name is there, but only the bytes that were synced (a rename that overtook its data);
* ``some``: of the names and the writes that were not synced, a random part is there, the last write torn.

Prints one JSON line; ends with 1 when a check failed.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from sterna.errors import NodeError
from sterna.store import Disk
from tests.node.store.crash import Told, check, live, preload_shim

_CHANGE = struct.Struct("<QQIIII")


@dataclass(frozen=True, slots=True)
class Change:
    """One line of the log; ``what`` as in shim.c."""

    what: str
    inode: int
    offset: int
    first: bytes
    second: bytes


@dataclass(slots=True)
class File:
    """What a file holds, what of it would survive, and the writes between the two."""

    inode: int
    synced: bytearray = field(default_factory=bytearray)
    now: bytearray = field(default_factory=bytearray)
    unsynced: list[tuple[int, bytes]] = field(default_factory=list)


@dataclass(slots=True)
class Folder:
    """A folder; which names it holds is in ``PlayedDisk``."""


class PlayedDisk:
    """The disk as the calls so far left it, in memory and on the platter."""

    def __init__(self, root: PurePath, folders: Callable[[int], PurePath | None]) -> None:
        self._root = root
        self._path_of_folder = folders
        self._names: dict[PurePath, File | Folder] = {root: Folder()}
        self._synced_names: dict[PurePath, File | Folder] = {root: Folder()}
        self._files: dict[int, File] = {}

    def play(self, change: Change) -> None:
        path = PurePath(change.first.decode()) if change.what in "omru" else self._root
        if not path.is_relative_to(self._root):
            return
        match change.what:
            case "o":
                known = self._names.get(path)
                if not isinstance(known, File) or known.inode != change.inode:
                    self._names[path] = self._files[change.inode] = File(change.inode)
                elif change.offset:
                    self._truncate(known, 0)
            case "m":
                self._names[path] = Folder()
            case "r":
                self._names[PurePath(change.second.decode())] = self._names.pop(path)
            case "u":
                self._names.pop(path, None)
            case "w" if change.inode in self._files:
                self._write(self._files[change.inode], change.offset, change.first)
            case "t" if change.inode in self._files:
                self._truncate(self._files[change.inode], change.offset)
            case "s":
                self._sync(change.inode)

    def _write(self, file: File, offset: int, data: bytes) -> None:
        file.unsynced.append((offset, data))
        _put(file.now, offset, data)

    def _truncate(self, file: File, size: int) -> None:
        # Shrinking reaches the platter with the metadata; a worse order would only keep more.
        for content in (file.now, file.synced):
            del content[size:]
        file.now.extend(bytes(size - len(file.now)))

    def _sync(self, inode: int) -> None:
        folder = self._path_of_folder(inode)
        if folder is not None:
            for names in (self._synced_names, self._names):
                for path in [path for path in names if path.parent == folder and path != self._root]:
                    if path in self._names:
                        self._synced_names[path] = self._names[path]
                    else:
                        del self._synced_names[path]
        elif inode in self._files:
            file = self._files[inode]
            file.synced = bytearray(file.now)
            file.unsynced.clear()

    def leave(self, target: Path, how: str, chance: random.Random) -> None:
        """Write to ``target`` what a power cut leaves now."""
        names = dict(self._synced_names)
        if how == "names":
            names = dict(self._names)
        elif how == "some":
            for path in self._names.keys() | self._synced_names.keys():
                if chance.random() < 0.5:
                    if path in self._names:
                        names[path] = self._names[path]
                    else:
                        names.pop(path, None)
        for path in sorted(names):
            place = target / path.relative_to(self._root)
            if not place.parent.is_dir():
                continue
            entry = names[path]
            if isinstance(entry, Folder):
                place.mkdir(mode=0o700, exist_ok=True)
            else:
                place.write_bytes(_left_of(entry, how, chance))
                place.chmod(0o600)


def _left_of(file: File, how: str, chance: random.Random) -> bytes:
    left = bytearray(file.synced)
    if how == "some":
        for offset, data in file.unsynced:
            if chance.random() < 0.5:
                _put(left, offset, data[: chance.randint(0, len(data))] if chance.random() < 0.3 else data)
    return bytes(left)


def _put(content: bytearray, offset: int, data: bytes) -> None:
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(data)] = data


def record(folder: Path) -> tuple[list[Change], dict[int, PurePath]]:
    """Two lives of a node, written down; and which inode is which folder."""
    shim = ctypes.CDLL(None)
    home = folder / "disk" / "home"
    home.parent.mkdir()
    log = os.open(folder / "log", os.O_RDWR | os.O_CREAT)
    shim.fault_record(log)
    for mood in (1, 2):
        live(home, Disk(), lambda line: shim.fault_note(line.encode()), mood=mood, rounds=1)
    shim.fault_record(-1)
    everything = (home.parent, home, *home.rglob("*"))
    folders = {path.stat().st_ino: PurePath(path) for path in everything if path.is_dir()}
    data = (folder / "log").read_bytes()
    os.close(log)
    return list(_changes(data)), folders


def _changes(data: bytes) -> Iterator[Change]:
    position = 0
    while position < len(data):
        inode, offset, first, second, what, _ = _CHANGE.unpack_from(data, position)
        start = position + _CHANGE.size
        position = start + first + second
        yield Change(chr(what), inode, offset, data[start : start + first], data[start + first : position])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.node.store.powercut", description=__doc__)
    parser.add_argument("--folder", type=Path, help="where to work; in memory (/dev/shm) it goes much faster")
    parser.add_argument("--every", type=int, default=1, help="cut after each n-th change only")
    parser.add_argument("--draws", type=int, default=3, help="random parts for each cut")
    options = parser.parse_args()
    if "STERNA_CRASH_FOLDER" not in os.environ:
        module = "tests.node.store.powercut"
        preload_shim(module, Path(tempfile.mkdtemp(prefix="sterna-crash-", dir=options.folder)))
    folder = Path(os.environ["STERNA_CRASH_FOLDER"])

    started = time.monotonic()
    changes, folders = record(folder)
    root = PurePath(folder / "disk")
    played, told = PlayedDisk(root, folders.get), Told()
    wrong: list[str] = []
    cuts = 0
    for number, change in enumerate(changes):
        if change.what == "n":
            told.hear(change.first.decode())
        else:
            played.play(change)
        if number % options.every:
            continue
        for draw, how in enumerate(["least", "names", *["some"] * options.draws]):
            target = folder / "after"
            target.mkdir()
            played.leave(target, how, random.Random(1000 * number + draw))
            wrong += [f"change {number} {change.what} {how}: {flaw}" for flaw in _flaws(target, told)]
            shutil.rmtree(target)
            cuts += 1
    shutil.rmtree(folder)
    seconds = round(time.monotonic() - started, 1)
    report = {"changes": len(changes), "cuts": cuts, "seconds": seconds, "wrong": wrong[:20]}
    sys.stdout.write(json.dumps(report) + "\n")
    return 1 if wrong else 0


def _flaws(target: Path, told: Told) -> list[str]:
    try:
        return check(target / "home", told)
    except NodeError as error:
        return [f"{type(error).__name__}: {error}"]


if __name__ == "__main__":
    sys.exit(main())
