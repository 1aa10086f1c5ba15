"""The NEON variants return the bits of the scalar one, on emulated processors that have their instructions.

They are built for aarch64 Linux by the compiler of the package ziglang, and run by qemu's user emulation.
"""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "kernels" / "src"
DRIVER = Path(__file__).parent / "neon" / "driver.cc"

EMULATOR = shutil.which("qemu-aarch64")

# Compiled each with its own instructions, as kernels/CMakeLists.txt does.
SOURCES = {
    DRIVER: "generic",
    KERNELS / "scalar.cc": "generic",
    KERNELS / "cpu.cc": "generic",
    KERNELS / "neon_dotprod.cc": "generic+dotprod",
    KERNELS / "neon_i8mm.cc": "generic+i8mm",
}

pytestmark = [
    pytest.mark.slow,
    # The first build ever also builds the C library for aarch64, which takes a minute or two.
    pytest.mark.timeout(900),
    pytest.mark.skipif(EMULATOR is None, reason="qemu-aarch64 is missing: apt-get install qemu-user"),
    pytest.mark.skipif(
        importlib.util.find_spec("ziglang") is None, reason="ziglang is missing: pip install ziglang"
    ),
]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("neon")
    compiler = [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-musl"]
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-DSTERNA_ARM"]
    objects = [folder / f"{source.stem}.o" for source in SOURCES]
    for (source, processor), made in zip(SOURCES.items(), objects, strict=True):
        build([*compiler, *flags, f"-mcpu={processor}", "-c", source, "-o", made])
    # Nothing here needs the C++ library, which would have to be built first.
    build([*compiler, "-nostdlib++", *objects, "-o", folder / "driver"])
    return folder / "driver"


def build(command: list[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def lines_on(processor: str, driver: Path) -> dict[str, str]:
    """What the driver says of each variant on an emulated processor."""
    assert EMULATOR is not None
    done = subprocess.run([EMULATOR, "-cpu", processor, driver], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(line.split(": ") for line in done.stdout.splitlines())


def test_every_product_and_quantised_row_has_the_bits_of_the_scalar_variant(driver):
    equal = "546 quantised rows, 17901 panels, 60 gemvs equal"
    assert lines_on("max", driver) == {"neon-dotprod": equal, "neon-i8mm": equal}


def test_a_processor_without_the_instructions_is_recognised(driver):
    absent = "does not run here"
    assert lines_on("cortex-a72", driver) == {"neon-dotprod": absent, "neon-i8mm": absent}


def test_a_processor_with_dot_products_alone_runs_those(driver):
    lines = lines_on("neoverse-n1", driver)
    assert lines["neon-dotprod"].endswith("equal")
    assert lines["neon-i8mm"] == "does not run here"
