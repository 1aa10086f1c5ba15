import ast
import subprocess
import sys
from pathlib import Path

import sterna_kernels


def test_the_committed_stub_is_what_the_compiled_module_says(tmp_path):
    made = tmp_path / "_native.pyi"
    stubgen = [sys.executable, "-m", "nanobind.stubgen", "-q"]
    subprocess.run([*stubgen, "-m", "sterna_kernels._native", "-o", str(made)], check=True)
    committed = Path(sterna_kernels.__file__).with_name("_native.pyi")
    # Line breaks are the formatter's.
    meaning = [ast.dump(ast.parse(path.read_text())) for path in (made, committed)]
    assert meaning[0] == meaning[1], f"copy {made} over {committed}"
