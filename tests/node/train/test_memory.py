"""Where the memory goes that a training process frees between its steps."""

from sterna.train.memory import LARGE_BASE_BYTES, ROOMY_FACTOR, available_bytes, malloc_environment

KEEPS = malloc_environment(0, 0)


def test_a_small_base_keeps_what_it_freed_however_little_is_free():
    assert malloc_environment(LARGE_BASE_BYTES - 1, 0) == KEEPS


def test_a_large_base_keeps_it_where_memory_is_plentiful_and_gives_it_back_elsewhere():
    base = 3 * LARGE_BASE_BYTES
    assert malloc_environment(base, ROOMY_FACTOR * base) == KEEPS
    returns = malloc_environment(base, ROOMY_FACTOR * base - 1)
    assert int(returns["MALLOC_MMAP_THRESHOLD_"]) < int(KEEPS["MALLOC_MMAP_THRESHOLD_"])


def test_the_system_tells_how_much_is_free():
    assert available_bytes() > 0
