"""Who loads what: the limit on address space and the start of the command line depend on it."""

import subprocess
import sys

import pytest

LOADED = "import sys; print([m for m in ('torch', 'trio', 'libp2p') if m in sys.modules])"


@pytest.mark.parametrize(
    ("module", "loaded"),
    [("sterna.net", "[]"), ("sterna.net.child", "['trio']"), ("sterna.net.host", "['trio', 'libp2p']")],
)
def test_the_network_process_loads_no_torch_and_the_core_no_libp2p(module: str, loaded: str) -> None:
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"import {module}; {LOADED}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == loaded
