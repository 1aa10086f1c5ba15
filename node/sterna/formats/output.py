"""Writing what the user asked for: whole or not at all, and never over something else."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sterna.errors import ConfigError, StorageError

Content = bytes | Iterable[bytes]
"""A file's bytes, at once or piece by piece."""

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def write_file(path: Path, data: Content) -> None:
    """``path`` holds ``data``; a crash leaves what was there before, or this.

    Raises:
        ConfigError: ``path`` is a folder.
        StorageError: the disk refused; nothing was changed.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file with -o")
    with _reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = _beside(path)
        try:
            _write(partial, data)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        _sync_folder(path.parent)


def write_directory(directory: Path, files: Mapping[str, Content]) -> None:
    """``directory`` holds exactly ``files``; a crash leaves what was there before, or this.

    A directory that is already there is replaced only if it holds nothing but files of these names.

    Raises:
        ConfigError: ``directory`` is a file, or holds something else.
        StorageError: the disk refused; nothing was changed.
    """
    with _reported(directory):
        _require_replaceable(directory, files)
        directory.parent.mkdir(parents=True, exist_ok=True)
        partial = _beside(directory)
        try:
            partial.mkdir()
            for name, data in files.items():
                _write(partial / name, data)
            _sync_folder(partial)
            if directory.is_dir():
                _exchange(partial, directory)
            else:
                partial.rename(directory)
        finally:
            # After an exchange this is what stood there before.
            shutil.rmtree(partial, ignore_errors=True)
        _sync_folder(directory.parent)


def read_file(path: Path, max_bytes: int) -> bytes:
    """The bytes of a file that anybody may have made.

    Raises:
        ConfigError: there is none, or it is larger than ``max_bytes``.
        StorageError: the disk refused.
    """
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise ConfigError(f"{path}: {error.strerror}; name an adapter that sterna or peft wrote") from error
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > max_bytes:
        raise ConfigError(f"{path} is larger than the {max_bytes} bytes that such a file may have")
    return data


def _require_replaceable(directory: Path, files: Mapping[str, Content]) -> None:
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise ConfigError(f"{directory} is not a folder; choose another with -o")
    if not directory.exists():
        return
    strange = sorted(entry.name for entry in directory.iterdir() if entry.name not in files or entry.is_dir())
    if strange:
        raise ConfigError(
            f"{directory} holds {strange[0]!r}, which is no part of an adapter; choose another folder with -o"
        )


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _write(path: Path, data: Content) -> None:
    with path.open("xb") as file:
        for piece in (data,) if isinstance(data, bytes) else data:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(new: Path, old: Path) -> None:
    """Swap two directories at once where the file system can, else one after the other."""
    if _rename_at_once(new, old):
        return
    aside = _beside(old)
    old.rename(aside)
    try:
        new.rename(old)
    except OSError:
        aside.rename(old)
        raise
    aside.rename(new)


def _rename_at_once(new: Path, old: Path) -> bool:
    """Whether Linux's renameat2 swapped them; older C libraries and some file systems have no such thing."""
    swap = getattr(ctypes.CDLL(None), "renameat2", None)
    if swap is None:
        return False
    failed: int = swap(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE)
    return failed == 0


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}; free some space or choose another place "
            f"with -o"
        ) from error
