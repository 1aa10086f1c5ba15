"""The loops that say what a core can do at most: they run here, and count what they do."""

import numpy as np
import pytest

import sterna_kernels
from sterna_kernels.ceilings import ceilings, read_all, run_ceiling


def test_every_variant_with_an_instruction_of_its_own_has_a_ceiling():
    assert set(sterna_kernels.variants()) - {"scalar"} <= set(ceilings())


def test_operations_grow_with_the_rounds():
    for name in ceilings():
        assert run_ceiling(name, 3) == 3 * run_ceiling(name, 1) > 0


def test_an_unknown_ceiling_and_no_rounds_are_refused():
    with pytest.raises(ValueError, match="no ceiling nonsense"):
        run_ceiling("nonsense", 1)
    for name in ceilings():
        with pytest.raises(ValueError, match="rounds=0"):
            run_ceiling(name, 0)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 1000, 4096 * 3 + 17])
@pytest.mark.parametrize("streams", [1, 2, 16])
def test_reading_touches_every_byte_once(size, streams):
    memory = np.ones(size, np.uint8)
    # Whole cache lines are added up as words of eight bytes, the rest as bytes.
    words = size // 64 * 8
    expected = (words * 0x0101010101010101 + size % 64) % 2**64
    assert read_all(memory, streams) == expected


def test_streams_out_of_range_are_refused():
    with pytest.raises(ValueError, match="17 streams"):
        read_all(np.ones(64, np.uint8), 17)
