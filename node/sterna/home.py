"""Where a node keeps what it must not forget: its home folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from sterna.errors import ConfigError

HOME_VARIABLE = "STERNA_HOME"
DEFAULT_HOME = "~/.sterna"
BASES = "bases"
"""The folder for base files beside those that ship."""

HOME_ENTRIES = frozenset(
    {"acts", BASES, "key", "key.next", "lock", "state.db", "blobs", "status.json", "crash.log", "demo.log"}
)
"""What a home may hold; a folder with none of these and something else is somebody's own."""


def home_folder(option: Path | None = None, environment: Mapping[str, str] = os.environ) -> Path:
    """The home folder as an absolute path: ``--home``, else ``$STERNA_HOME``, else ``~/.sterna``.

    Raises:
        ConfigError: the path starts with the "~" of a user who has no home folder.
    """
    chosen = option if option is not None else Path(environment.get(HOME_VARIABLE) or DEFAULT_HOME)
    try:
        return Path(os.path.abspath(chosen.expanduser()))  # noqa: PTH100 - symlinks stay as the user wrote them
    except RuntimeError as error:
        raise ConfigError(f"{chosen}: {error}; name the folder with --home or ${HOME_VARIABLE}") from error


def prepare_home(home: Path) -> None:
    """Make ``home``, or check it; afterwards only its owner may look inside (mode 0700).

    Raises:
        ConfigError: it is a file, another user's folder, or a folder that holds other things.
        OSError: the disk refused.
    """
    _make(home)
    status = home.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"{home} is a file; choose a folder with --home or ${HOME_VARIABLE}")
    if status.st_uid != os.geteuid():
        raise ConfigError(
            f"{home} belongs to user {status.st_uid}, not to you ({os.geteuid()}); choose another with --home"
        )
    if stat.S_IMODE(status.st_mode) == 0o700:
        return
    names = {entry.name for entry in home.iterdir()}
    if names and not names & HOME_ENTRIES:
        raise ConfigError(
            f"{home} holds other things ({min(names)}, ...); choose an empty or new folder with --home"
        )
    home.chmod(0o700)


def _make(home: Path) -> None:
    """Make ``home`` and the folders above it so that a power cut cannot take them away again."""
    missing = [path for path in (home, *home.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700 if path == home else 0o777, exist_ok=True)
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
