"""The home folder and the key in it: ours alone, or refused with the way out."""

from __future__ import annotations

import stat
from contextlib import suppress
from pathlib import Path

import pytest

from sterna.errors import ConfigError
from sterna.home import home_folder, prepare_home
from sterna.store import NEXT_KEY, Disk, next_seed, open_store
from sterna.store.keys import create_seed, read_seed


def test_a_key_is_made_once_and_read_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert read_seed(path) is None
    seed = create_seed(path, Disk())
    assert len(seed) == 32
    assert read_seed(path) == seed
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        create_seed(path, Disk())
    assert [entry.name for entry in tmp_path.iterdir()] == ["key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_that_others_can_read_is_refused_with_the_command_that_helps(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    create_seed(path, Disk())
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o}.*chmod 600 {path}"):
        read_seed(path)


@pytest.mark.parametrize("data", [b"", b"x" * 31, b"x" * 33])
def test_a_key_of_another_length_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="a seed has 32"):
        read_seed(path)


def test_a_key_that_is_no_plain_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").mkdir(mode=0o700)
    with pytest.raises(ConfigError, match="not a plain file"):
        read_seed(tmp_path / "key")


def test_a_key_swapped_for_another_is_noticed(tmp_path: Path) -> None:
    with open_store(tmp_path / "home") as store:
        store.key()
        (store.home / "key").write_bytes(b"x" * 32)
        with pytest.raises(ConfigError, match="another node's"):
            store.key()
        (store.home / "key").unlink()
        with pytest.raises(ConfigError, match="is gone; put your copy of it back"):
            store.key()


def test_a_key_without_its_journal_is_not_used(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with open_store(home) as store:
        store.key()
    (home / "state.db").unlink()
    with pytest.raises(ConfigError, match=r"no state\.db, which remembers what the key signed"):
        open_store(home)


def test_the_option_wins_over_the_variable_and_that_over_the_default(tmp_path: Path) -> None:
    variable = {"STERNA_HOME": str(tmp_path / "variable")}
    assert home_folder(tmp_path / "option", variable) == tmp_path / "option"
    assert home_folder(None, variable) == tmp_path / "variable"
    assert home_folder(None, {}) == Path.home() / ".sterna"
    assert home_folder(None, {"STERNA_HOME": ""}) == Path.home() / ".sterna"
    assert home_folder(Path("here"), {}) == Path.cwd() / "here"


def test_a_home_is_for_its_owner_alone(tmp_path: Path) -> None:
    home = tmp_path / "a" / "home"
    prepare_home(home)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    home.chmod(0o755)
    prepare_home(home)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_everything_in_a_home_is_for_its_owner_alone(tmp_path: Path) -> None:
    with open_store(tmp_path / "home") as store:
        store.key()
        store.blobs.put(b"x")
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) & 0o077 for path in store.home.rglob("*")}
    assert set(modes.values()) == {0}


def test_a_folder_with_other_things_is_not_made_a_home(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="holds other things"):
        open_store(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    with pytest.raises(ConfigError, match="is a file"):
        prepare_home(tmp_path / "thesis.tex")


class PowerCut(Exception):
    pass


class Cutting:
    """Refuses the change number ``step`` that is made while ``is_armed``, and every later one."""

    def __init__(self, step: int) -> None:
        self.is_armed = False
        self._left = step

    def __call__(self, _name: str) -> None:
        if self.is_armed:
            if self._left == 0:
                raise PowerCut
            self._left -= 1


def test_the_next_key_is_the_same_until_it_is_in_force(tmp_path: Path) -> None:
    assert next_seed(tmp_path / NEXT_KEY, Disk()) == next_seed(tmp_path / NEXT_KEY, Disk())


@pytest.mark.parametrize("step", range(10))
def test_a_crash_while_the_key_changes_leaves_the_old_one_or_the_new_one(tmp_path: Path, step: int) -> None:
    home = tmp_path / "home"
    with open_store(home) as store:
        old = store.key()
    new = next_seed(home / NEXT_KEY, Disk())
    cut = Cutting(step)
    with open_store(home, disk=Disk(cut)) as store:
        cut.is_armed = True
        with suppress(PowerCut):
            store.adopt_next_key()
        cut.is_armed = False
    with open_store(home) as store:
        found = store.key()
        assert found in (old, new)
        if found == old:
            assert store.adopt_next_key() == new
    with open_store(home) as store:
        assert store.key() == new
    assert not (home / NEXT_KEY).exists()


def test_a_next_key_that_is_gone_is_missed(tmp_path: Path) -> None:
    with open_store(tmp_path / "home") as store:
        old = store.key()
        with pytest.raises(ConfigError, match="put it back"):
            store.adopt_next_key()
        assert store.key() == old
