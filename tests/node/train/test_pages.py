"""What a training process holds of its base while it goes through it."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from sterna.train import loss as loss_module
from sterna.train import model as model_module
from sterna.train.base import Base
from sterna.train.lora import Lora
from sterna.train.loss import Head, cross_entropy
from sterna.train.model import Decoder, Keeping, KeyValueCache
from sterna.train.pages import release
from sterna_protocol.merge.scheme import delta_size
from tests.node.train.tiny import scheme_for, tiny_base

TOKENS = np.random.default_rng(5).integers(0, 264, (2, 17))
TARGETS = np.random.default_rng(6).integers(0, 264, (2, 17))


def resident_bytes(path: Path) -> int:
    """What this process holds of a mapped file."""
    maps = Path("/proc/self/smaps").read_text()
    return sum(1024 * int(kib) for kib in re.findall(rf"{path}\nSize:.*?^Rss: +(\d+) kB", maps, re.M | re.S))


@pytest.fixture
def released(monkeypatch):
    """The addresses of the parts that are released, in their order; they are released all the same.

    How much is resident afterwards is the system's choice: it brings up to 2 MiB back around a page.
    """
    seen = []

    def watched(part):
        seen.append(part.ctypes.data)
        release(part)

    monkeypatch.setattr(model_module, "release", watched)
    monkeypatch.setattr(loss_module, "release", watched)
    return seen


def matrices_of(base: Base, *layers: int) -> list[int]:
    """Where the matrices of these layers lie."""
    linears = base.architecture.linears()
    return [
        plane.packed.ctypes.data
        for layer in layers
        for name, *_ in linears
        if name.startswith(f"layers.{layer}.")
        for plane in base.planes(name)
    ]


def gradient_of(base: Base, *, recomputed: int, returns_pages: bool) -> np.ndarray:
    scheme = scheme_for(base.architecture)
    lora = Lora(scheme, np.full((scheme.subspaces, delta_size(scheme)), 0.01, np.float32), trained=0)
    decoder = Decoder(base, backward="int8", returns_pages=returns_pages)
    hidden = decoder.hidden(TOKENS, lora=lora, keeping=Keeping(recomputed=recomputed))
    cross_entropy(hidden, TARGETS, Head(base.head)).backward()
    assert lora.gradient is not None
    return lora.gradient.numpy()


def test_released_pages_are_gone_and_read_the_same_afterwards(tmp_path):
    data = np.random.default_rng(0).bytes(1 << 20)
    path = tmp_path / "file"
    path.write_bytes(data)
    whole = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
    assert whole.tobytes() == data
    before = resident_bytes(path)
    release(whole[1000 : 1000 + (1 << 19)])
    assert before - resident_bytes(path) >= 1 << 19
    assert whole.tobytes() == data


def test_memory_that_is_no_file_s_is_refused_because_it_would_be_lost():
    kept = np.ones(1 << 16, np.uint8)
    with pytest.raises(TypeError, match="no part of a mapped file"):
        release(kept)
    assert kept.all()


@pytest.mark.parametrize("recomputed", [0, 2])
def test_a_step_gives_each_layer_back_after_each_of_its_passes_and_has_the_same_gradient(
    tmp_path, released, recomputed
):
    base = tiny_base(tmp_path, layers=3)
    expected = gradient_of(base, recomputed=recomputed, returns_pages=False)
    assert released == []
    np.testing.assert_array_equal(gradient_of(base, recomputed=recomputed, returns_pages=True), expected)
    # Nobody wants the gradient of the first layer's input: the next step gives that layer back.
    assert released == matrices_of(base, 0, 1, 2, 2, 1)


@torch.no_grad()
def test_reading_a_text_gives_the_layers_back_and_reading_a_prompt_to_go_on_from_does_not(tmp_path, released):
    base = tiny_base(tmp_path)
    decoder = Decoder(base, backward="int8", returns_pages=True)
    cache = KeyValueCache(base.architecture, sequences=2, tokens=17)
    once = decoder.hidden(TOKENS, cache=cache)
    assert released == []
    assert torch.equal(decoder.hidden(TOKENS), once)
    assert released == matrices_of(base, 0, 1)


def test_a_large_head_is_given_back_block_by_block(tmp_path, monkeypatch, released):
    monkeypatch.setattr(loss_module, "KEPT_HEAD_BYTES", 0)
    monkeypatch.setattr(loss_module, "BLOCK_ROWS", 100)
    base = tiny_base(tmp_path)
    h = torch.randn(34, 48, generator=torch.Generator().manual_seed(0)).requires_grad_()
    kept = cross_entropy(h, TARGETS, Head(base.head))
    assert released == []
    assert torch.equal(cross_entropy(h, TARGETS, Head(base.head, returns_pages=True)), kept)
    start = base.head[0].ctypes.data
    assert released == [start, start + 100 * 48, start + 200 * 48]
