"""The measured process of Sterna's own model.

Arguments: base, rank, threads, variant or "", backward, what becomes of memory (sterna.train.memory).
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch

import sterna_kernels
from sterna.bench.process import Answer, peak_bytes, resident_bytes, serve, shared_bytes
from sterna.train.base import Architecture, Base, open_base
from sterna.train.batches import Batch
from sterna.train.lora import Lora
from sterna.train.loss import Head
from sterna.train.memory import RETURNED
from sterna.train.model import Decoder, KeyValueCache
from sterna.train.step import AdamW, keeping_within, train_step
from sterna.train.worker import WorkerConfig
from sterna_kernels import _native
from sterna_kernels.torch import Backward
from sterna_protocol.merge.scheme import delta_size
from sterna_protocol.swarm.charter import AdapterScheme, Linear, Recipe

RATE = 1e-4


class Model:
    """An open base with an adapter that trains, and the jobs of the benchmark."""

    def __init__(self, base: Base, *, rank: int, backward: Backward, returns_pages: bool) -> None:
        self.base = base
        self._decoder = Decoder(base, backward=backward, returns_pages=returns_pages)
        self._head = Head(base.head, returns_pages=returns_pages)
        self._scheme = scheme_of(base.architecture, rank)
        self._lora: Lora | None = None
        self._optimiser: AdamW | None = None

    def step(self, tokens: int) -> Answer:
        """One step of training: forward, backward, optimiser."""
        if self._lora is None:
            state = np.zeros((1, delta_size(self._scheme)), np.float32)
            self._lora = Lora(self._scheme, state, trained=0)
            self._optimiser = AdamW(self._lora.values)
        assert self._optimiser is not None  # for mypy: made beside the adapter
        recipe = Recipe(
            steps=1,
            sequences_per_step=1,
            tokens_per_sequence=tokens,
            learning_rate_micros=int(RATE * 1e6),
            warmup_steps=0,
        )
        budget = WorkerConfig(base=self.base.path).activation_bytes
        keeping = keeping_within(self._decoder, recipe, budget_bytes=budget)
        ids = self._tokens(tokens + 1)
        batch = Batch(inputs=ids[None, :-1], targets=ids[None, 1:])
        lora, optimiser = self._lora, self._optimiser

        def run() -> float:
            loss, _ = train_step(
                self._decoder, self._head, lora, batch, optimiser, rate=RATE, keeping=keeping
            )
            return loss

        return timed(run) | {"rounded": keeping.rounded, "layers_recomputed": keeping.recomputed}

    @torch.no_grad()
    def prefill(self, tokens: int) -> Answer:
        """Reading a prompt, up to the logits of its last token."""
        ids = self._tokens(tokens)

        def run() -> float:
            cache = KeyValueCache(self.base.architecture, sequences=1, tokens=tokens)
            h = self._decoder.hidden(ids[None], cache=cache)
            return float(self._head.logits(h[:, -1]).amax())

        return timed(run)

    @torch.no_grad()
    def decode(self, tokens: int) -> Answer:
        """So many tokens, one after the other, after a prompt of 16; seconds are for all of them."""
        prompt = 16
        ids = self._tokens(prompt + tokens)
        cache = KeyValueCache(self.base.architecture, sequences=1, tokens=prompt + tokens)
        self._decoder.hidden(ids[None, :prompt], cache=cache)

        def run() -> float:
            largest = 0.0
            for place in range(prompt, prompt + tokens):
                h = self._decoder.hidden(ids[None, place : place + 1], cache=cache)
                largest = float(self._head.logits(h[:, -1]).amax())
            return largest

        return timed(run) | {"tokens": tokens}

    @torch.no_grad()
    def products(self, tokens: int, repeats: int = 1) -> Answer:
        """What the kernels alone take to read a prompt of ``tokens``, or for a token when it is 1."""
        head_input = torch.zeros(1, self.base.architecture.hidden_size)
        # Rows that lie in the caches, and results whose pages are there: both are so inside the model.
        linears = self.base.architecture.linears()
        inputs = {in_: torch.randn(tokens, in_) for _, _, in_ in linears}
        outputs = {out: torch.zeros(tokens, out) for _, out, _ in linears}
        work = []
        for name, out, in_ in linears:
            (matrix,) = self.base.planes(name)
            work.append((matrix, inputs[in_], outputs[out]))

        def run() -> float:
            for _ in range(repeats):
                for w, x, y in work:
                    _native.forward(
                        w.packed.ctypes.data, *w.shape, w.scale, 0, 0, x.data_ptr(), tokens, y.data_ptr()
                    )
                self._head.logits(head_input)
            return 0.0

        return timed(run) | {"tokens": repeats}

    def memory(self) -> Answer:
        """What the process holds, and held at most."""
        return {"peak_bytes": peak_bytes(), "resident_bytes": resident_bytes(), **shared_bytes()}

    def touch(self) -> Answer:
        """Read every page of the base."""
        self.base.digest  # noqa: B018  # reading is what it is for
        return {}

    def _tokens(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.random.default_rng(0).integers(0, self.base.architecture.vocab_size, count)


def scheme_of(architecture: Architecture, rank: int) -> AdapterScheme:
    """An adapter on all linears; its A matrices are drawn, B trains, as in a swarm."""
    return AdapterScheme(
        scheme="fixed",
        rank=rank,
        subspaces=1,
        scale=2,
        layers=architecture.layers,
        linears=tuple(
            Linear(name=name.removeprefix("layers.0."), out_features=out, in_features=in_)
            for name, out, in_ in architecture.linears()
            if name.startswith("layers.0.")
        ),
        seed=hashlib.sha256(b"benchmark").digest(),
    )


def timed(run: Callable[[], float]) -> Answer:
    """Wall and processor seconds of ``run``, and the number it returns."""
    wall, cpu = time.perf_counter(), time.process_time()
    value = run()
    return {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "value": value,
    }


def main() -> None:
    """Open the base and serve."""
    path, rank, threads, variant, backward, memory = sys.argv[1:]
    torch.set_num_threads(int(threads))
    if variant:
        sterna_kernels.use_variant(variant)
    started = time.perf_counter()
    base = open_base(Path(path))
    opened = time.perf_counter() - started
    model = Model(base, rank=int(rank), backward=cast(Backward, backward), returns_pages=memory == RETURNED)
    ready = {"open_seconds": opened, "variant": sterna_kernels.variant(), "parameters": parameters(base)}
    jobs = (model.step, model.prefill, model.decode, model.products, model.memory, model.touch)
    serve(ready, {job.__name__: job for job in jobs})


def parameters(base: Base) -> int:
    """Weights of all linears, norms and embeddings."""
    a = base.architecture
    rows = a.vocab_size * a.hidden_size * (1 if a.tied_embeddings else 2)
    return rows + sum(out * in_ for _, out, in_ in a.linears()) + sum(size for _, size in a.vectors())


if __name__ == "__main__":
    main()
