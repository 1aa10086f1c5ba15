"""A real node whose disk fills while it runs: one line, a documented exit code, and nothing lost."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sterna.app.demo.processes import LOOPBACK
from tests.support.texts import short_texts

MOUNT = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
"""A shell that may mount what nobody else sees, and that is gone with it."""

SCRIPT = """
mount -t tmpfs -o size=96m tmpfs disk || exit 99
"$@" swarm create --home disk/home --data text.txt --steps 1 --min-deltas 1 --listen $LISTEN > out 2> err &
node=$!
until grep -q "round 1 certified" out; do kill -0 $node || exit 98; sleep 0.2; done
head -c 200M /dev/zero > disk/filler
wait $node
echo $? > code
"$@" rounds --json --home disk/home > rounds.json
"""


def can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    tried = subprocess.run([*MOUNT, "mount -t tmpfs tmpfs /mnt"], capture_output=True, check=False)
    return tried.returncode == 0


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(not can_mount(), reason="needs to mount a small file system for itself")
def test_a_node_whose_disk_fills_says_where_space_is_needed_and_keeps_what_it_had(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    short_texts(tmp_path)[0].rename(tmp_path / "text.txt")
    command = [*MOUNT, SCRIPT.replace("$LISTEN", LOOPBACK), "sh", sys.executable, "-m", "sterna"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    assert (tmp_path / "code").read_text() == "5\n"
    [line] = (tmp_path / "err").read_text().splitlines()
    assert line.startswith("error: ") and "free some space and try again, what was saved is safe" in line
    assert f"{tmp_path}/disk/home" in line
    assert json.loads((tmp_path / "rounds.json").read_text())["rounds"]
