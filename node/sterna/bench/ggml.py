"""llama.cpp's ternary product (TQ2_0), from the shared libraries that ``llama-cpp-python`` 0.3 installs.

Optional: without them there is no such row. They are loaded by their C interface, on one thread.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.errors import ConfigError

_F32, _TQ2_0 = 0, 35  # of enum ggml_type
_BLOCK, _BLOCK_BYTES = 256, 66  # weights of a block of TQ2_0, and its bytes
_LIBRARIES = ("libggml-base.so", "libggml-cpu.so")
_SLACK = 1 << 20  # tensors' and graphs' own fields


class _InitParams(ctypes.Structure):
    _fields_ = (("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class _Plan(ctypes.Structure):
    _fields_ = (
        ("work_size", ctypes.c_size_t),
        ("work_data", ctypes.c_void_p),
        ("threads", ctypes.c_int),
        ("pool", ctypes.c_void_p),
        ("abort", ctypes.c_void_p),
        ("abort_data", ctypes.c_void_p),
        ("use_reference", ctypes.c_bool),
    )


def installed_libraries() -> Path | None:
    """The folder of llama-cpp-python's shared libraries; none when it is not installed."""
    found = importlib.util.find_spec("llama_cpp")
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent / "lib"
    return folder if all((folder / name).exists() for name in _LIBRARIES) else None


class Ggml:
    """Products of ggml. ``close`` gives their memory back.

    Raises:
        ConfigError: the folder lacks the libraries, or they are of another kind.
    """

    def __init__(self, folder: Path) -> None:
        try:
            base, cpu = (ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL) for name in _LIBRARIES)
        except OSError as error:
            raise ConfigError(f"--ggml {folder}: {error}; give the folder of {_LIBRARIES[0]}") from error
        self._base, self._cpu, self._contexts = base, cpu, list[int]()
        address, number = ctypes.c_void_p, ctypes.c_int64
        signatures: list[tuple[Any, ...]] = [  # function, result, arguments
            (base.ggml_row_size, ctypes.c_size_t, ctypes.c_int, number),
            (base.ggml_init, address, _InitParams),
            (base.ggml_free, None, address),
            (base.ggml_new_tensor_2d, address, address, ctypes.c_int, number, number),
            (base.ggml_get_data, address, address),
            (base.ggml_mul_mat, address, address, address, address),
            (base.ggml_new_graph, address, address),
            (base.ggml_build_forward_expand, None, address, address),
            (cpu.ggml_graph_plan, _Plan, address, ctypes.c_int, address),
            (cpu.ggml_graph_compute, ctypes.c_int, address, ctypes.POINTER(_Plan)),
        ]
        for function, result, *arguments in signatures:
            function.restype, function.argtypes = result, arguments
        cpu.ggml_cpu_init()
        if base.ggml_row_size(_TQ2_0, _BLOCK) != _BLOCK_BYTES:
            raise ConfigError(f"--ggml {folder}: its TQ2_0 is another format; use llama-cpp-python 0.3")

    def product(self, n: int, k: int, rows: int) -> Callable[[], None]:
        """Y = x W^T with W [n, k] in TQ2_0 and x [rows, k] in float32, ready to be called again and again."""
        weights = n * k // _BLOCK * _BLOCK_BYTES
        context = self._base.ggml_init(_InitParams(weights + 4 * rows * (n + k) + _SLACK, None, False))
        self._contexts.append(context)
        w = self._base.ggml_new_tensor_2d(context, _TQ2_0, k, n)
        x = self._base.ggml_new_tensor_2d(context, _F32, k, rows)
        self._fill(w, np.full(weights, 0b01_00_10_01, np.uint8))
        self._fill(x, np.random.default_rng(1).standard_normal(rows * k, np.float32))
        graph = self._base.ggml_new_graph(context)
        self._base.ggml_build_forward_expand(graph, self._base.ggml_mul_mat(context, w, x))
        plan = self._cpu.ggml_graph_plan(graph, 1, None)
        work = np.empty(plan.work_size + 1, np.uint8)
        plan.work_data = work.ctypes.data

        def compute(work: NDArray[np.uint8] = work) -> None:  # which keeps the work area alive
            self._cpu.ggml_graph_compute(graph, ctypes.byref(plan))

        return compute

    def close(self) -> None:
        """Free the memory of every product; none may be called any more."""
        for context in self._contexts:
            self._base.ggml_free(context)
        self._contexts.clear()

    def _fill(self, tensor: int, values: NDArray[np.generic]) -> None:
        ctypes.memmove(self._base.ggml_get_data(tensor), values.ctypes.data, values.nbytes)
