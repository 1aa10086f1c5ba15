"""Acts that wait for a certified decision: one small file each, which any command of this home may add.

A node that runs holds the store; `sterna revoke` and the like only leave a file here, and the node finds it.
"""

from __future__ import annotations

import logging
from pathlib import Path

from sterna.store.disk import Disk, place
from sterna.store.failures import reported
from sterna_protocol.errors import MalformedMessage
from sterna_protocol.wire.acts import Act, decode_act
from sterna_protocol.wire.ids import short

logger = logging.getLogger(__name__)

SUFFIX = ".act"


class WaitingActs:
    """The acts of one swarm that wait in ``home``. Each call raises StorageError when the disk refuses."""

    def __init__(self, home: Path, swarm: bytes, disk: Disk | None = None) -> None:
        self._folder = home / "acts" / swarm.hex()
        self._disk = disk or Disk()

    def put(self, act: Act) -> None:
        """Keep ``act``; it is on the disk when this returns. The same act again is nothing."""
        path = self._path(act)
        with reported("the act was not saved", path):
            self._disk.make_folder(self._folder.parent)
            self._disk.make_folder(self._folder)
            place(self._disk, path, act.frame())

    def all(self) -> list[Act]:
        """Every act that waits, by id; a file that is no act is named in the log and left alone."""
        acts = []
        with reported("the acts cannot be read", self._folder):
            for path in sorted(self._folder.glob(f"*{SUFFIX}")):
                try:
                    acts.append(decode_act(path.read_bytes()))
                except MalformedMessage as broken:
                    logger.warning("act.unreadable", extra={"file": path.name, "why": str(broken)})
        return acts

    def drop(self, act: Act) -> None:
        """Forget ``act``: a decision carried it out."""
        path = self._path(act)
        with reported("the act was not removed", path):
            self._disk.remove(path)
        logger.info("act.done", extra={"act": short(act.id)})

    def _path(self, act: Act) -> Path:
        return self._folder / f"{act.id.hex()}{SUFFIX}"
