import subprocess
import sys
from pathlib import Path

import sterna_kernels


def test_the_committed_stub_is_what_the_compiled_module_says(tmp_path):
    made = tmp_path / "_native.pyi"
    command = [
        sys.executable,
        "-m",
        "nanobind.stubgen",
        "-q",
        "-m",
        "sterna_kernels._native",
        "-o",
        str(made),
    ]
    subprocess.run(command, check=True)
    committed = Path(sterna_kernels.__file__).with_name("_native.pyi")
    # Blank lines are the formatter's.
    meaning = [[line for line in path.read_text().splitlines() if line] for path in (made, committed)]
    assert meaning[0] == meaning[1], f"copy {made} over {committed}"
