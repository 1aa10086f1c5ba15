"""The simulator and the protocol, compiled: python -m tests.node.simulate.compiled FOLDER.

mypyc, which comes with mypy, makes C of a copy of the sources. A run has the same trace digest, in less than
two thirds of the time. Prints what to put before a command that is to run on the copy.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[3]
PACKAGES = [ROOT / "protocol/sterna_protocol", ROOT / "node/sterna", ROOT / "tests"]

MODULES = {
    "sterna_protocol": ["node"],
    "sterna_protocol/round": [
        "certificate", "chain", "changes", "checks", "consensus", "deliberation", "early", "effects",
        "evidence", "neighbours", "open_round", "own", "pace", "pending", "phases", "pool", "schedule",
        "setting", "slate", "status", "sync",
    ],
    "sterna_protocol/swarm": ["committee", "roll"],
    "sterna_protocol/wire": ["signing"],
    "sterna/simulate": [
        "blobs", "dice", "door", "invariants", "network", "peer", "trace", "traffic", "world",
    ],
}  # fmt: skip
"""What takes the time, but for classes of pydantic, which mypyc leaves as they are."""


def main(folder: Path) -> None:
    for package in PACKAGES:
        shutil.copytree(package, folder / package.name)
    modules = [folder / parent / f"{name}.py" for parent, names in MODULES.items() for name in names]
    for module in modules:
        # A class of mypyc's has slots anyway, and cannot be told to have them.
        text = re.sub(r", slots=True|slots=True, |\(slots=True\)", "", module.read_text())
        module.write_text(text)
    subprocess.run(
        [sys.executable, "-m", "mypyc", "--config-file", ROOT / "pyproject.toml", *modules],
        cwd=folder,
        env={"MYPYPATH": f"{folder}:{ROOT}/kernels", "PATH": "/usr/bin:/bin"},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    # Without site, no editable install comes first.
    sys.stdout.write(f"PYTHONPATH={folder}:{sysconfig.get_path('purelib')} {sys.executable} -S\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
