"""A decoder layer with its adapter, forward and backward, as it is and through torch.compile.

CPU seconds of a layer in the shape of BitNet-b1.58-2B-4T, medians of calls in turns, one thread.

Usage::

    OMP_NUM_THREADS=1 python deploy/experiments/compiled.py
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sterna.bench.ours import scheme_of
from sterna.bench.random_base import write_random_base
from sterna.bench.shapes import SHAPES
from sterna.train.base import open_base
from sterna.train.lora import Lora
from sterna.train.model import Decoder, _Pass
from sterna_kernels.torch_rows import as_it_is, in_bfloat16
from sterna_protocol.merge.scheme import delta_size


def main() -> None:
    torch.set_num_threads(1)
    architecture = replace(SHAPES["2b"], layers=1, vocab_size=1024)
    with tempfile.TemporaryDirectory() as folder:
        write_random_base(Path(folder) / "base.sterna", architecture, name="random")
        decoder = Decoder(open_base(Path(folder) / "base.sterna"), backward="int8")
        scheme = scheme_of(architecture, rank=8)
        lora = Lora(scheme, np.zeros((1, delta_size(scheme)), np.float32), trained=0)
        for tokens, keep in ((512, in_bfloat16), (512, as_it_is), (64, as_it_is)):
            cos, sin = decoder._rotation(0, tokens)
            pass_ = _Pass(cos, sin, lora, None, attention=torch.float32, keep=keep)
            h = torch.randn(1, tokens, architecture.hidden_size).requires_grad_()
            plain = step_of(lambda x, pass_=pass_: decoder._layer(0, x, pass_), h)  # type: ignore[misc]
            torch.compiler.reset()
            graph = torch.compile(lambda x, pass_=pass_: decoder._layer(0, x, pass_), fullgraph=True)
            turns = [(plain(), step_of(graph, h)()) for _ in range(9)][2:]
            ours, compiled = (statistics.median(turn[i] for turn in turns) for i in (0, 1))
            kept = "bfloat16" if keep is in_bfloat16 else "float32"
            figures = f"{ours:.3f} s, compiled {compiled:.3f} s, {ours / compiled:.2f}x"
            print(f"{tokens} tokens, {kept} kept: {figures}")


def step_of(layer: Callable[[Tensor], Tensor], h: Tensor) -> Callable[[], float]:
    def seconds() -> float:
        before = time.process_time_ns()
        torch.autograd.grad(layer(h).sum(), h)
        return (time.process_time_ns() - before) / 1e9

    return seconds


if __name__ == "__main__":
    main()
