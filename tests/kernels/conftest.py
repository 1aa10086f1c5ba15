"""Fixtures of the kernel tests: each variant in turn, and seeded numbers."""

from collections.abc import Iterator

import numpy as np
import pytest

import sterna_kernels

# The last two run the sources of "avxvnni" and "amx" on any processor with AVX-512 VNNI.
VARIANTS = [*sterna_kernels.variants(), "avxvnni-evex", "amx-emulated"]


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    """One variant in use; afterwards the one before it is again."""
    before = sterna_kernels.variant()
    try:
        sterna_kernels.use_variant(request.param)
    except ValueError:
        pytest.skip(f"{request.param} does not run on this processor")
    yield request.param
    sterna_kernels.use_variant(before)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240227)
