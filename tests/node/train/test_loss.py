"""The chunked loss equals the full one, value and gradient, wherever the chunks fall."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sterna.train import loss as module
from sterna.train.batches import IGNORED
from sterna.train.loss import Head, cross_entropy

EPSILON = float(np.finfo(np.float32).eps)


def rows_of(vocab: int, hidden: int):
    rng = np.random.default_rng(1)
    codes = rng.integers(-127, 128, (vocab, hidden)).astype(np.int8)
    return codes, (rng.random(vocab) / 127 + 1e-3).astype(np.float32)


def targets_of(count: int, vocab: int) -> np.ndarray:
    rng = np.random.default_rng(2)
    targets = rng.integers(0, vocab, count)
    targets[rng.random(count) < 0.4] = IGNORED
    return targets


def full(h: torch.Tensor, targets: np.ndarray, rows) -> torch.Tensor:
    head = torch.from_numpy(rows[0].astype(np.float64) * rows[1].astype(np.float64)[:, None])
    logits = h.double() @ head.T
    return F.cross_entropy(logits, torch.from_numpy(targets), ignore_index=IGNORED, reduction="sum")


@pytest.mark.parametrize("kept", [0, 1 << 26], ids=["int8 in blocks", "head kept"])
@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 40])
def test_value_and_gradient_equal_the_full_loss(monkeypatch, tokens, kept):
    monkeypatch.setattr(module, "MAX_CHUNK_TOKENS", 8)
    monkeypatch.setattr(module, "MAX_STREAMED_TOKENS", 8)
    monkeypatch.setattr(module, "KEPT_HEAD_BYTES", kept)
    monkeypatch.setattr(module, "BLOCK_ROWS", 37)
    vocab, hidden = 101, 24
    rows, targets = rows_of(vocab, hidden), targets_of(tokens, vocab)
    targets[0] = 5
    h = torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(0)).requires_grad_()
    expected = full(h, targets, rows)
    (gradient,) = torch.autograd.grad(expected, h)
    (got,) = torch.autograd.grad(value := cross_entropy(h, targets, Head(rows)), h)
    # A logit sums `hidden` products and its error goes through exp; the gradient sums `vocab` of those.
    largest_logit = float((h.detach() @ torch.from_numpy(rows[0].T * rows[1])).abs().max())
    relative = EPSILON * (hidden + vocab) * (1 + largest_logit)
    if not kept:
        # Two limbs round hidden states, and then exponentials times scales, by half a step of 127 * 256 to a
        # row's largest value. The first moves a logit by that times a row's sum, and all that follows as exp
        # does, by this much of itself; the second moves the gradient, 101 rows at once, by the same.
        sums = float(torch.from_numpy(np.abs(rows[0]) * rows[1][:, None]).sum(1).max())
        rounding = 0.5 / (127 * 256)
        relative += rounding * (2 * float(h.detach().abs().max()) * sums + vocab)
    assert abs(value - expected) <= relative * expected
    assert (got - gradient).abs().max() <= relative * gradient.abs().max()


@pytest.mark.parametrize("kept", [0, 1 << 26], ids=["int8 in blocks", "head kept"])
def test_no_more_logits_live_at_once_than_a_block_of_a_chunk(monkeypatch, kept):
    seen = []

    class Watched(Head):
        def logit_blocks(self, h):
            for start, block in super().logit_blocks(h):
                seen.append(tuple(block.shape))
                yield start, block

    monkeypatch.setattr(module, "KEPT_HEAD_BYTES", kept)
    monkeypatch.setattr(module, "MAX_CHUNK_TOKENS", 6)
    monkeypatch.setattr(module, "MAX_STREAMED_TOKENS", 6)
    monkeypatch.setattr(module, "BLOCK_ROWS", 40)
    h = torch.zeros(50, 24, requires_grad=True)
    cross_entropy(h, np.zeros(50, np.int64), Watched(rows_of(101, 24))).backward()
    assert max(tokens for tokens, _ in seen) == 6
    assert max(rows for _, rows in seen) == (101 if kept else 40)
    assert sum(tokens * rows for tokens, rows in seen) == 50 * 101


@pytest.mark.parametrize("kept", [0, 1 << 26], ids=["int8 in blocks", "head kept"])
def test_a_certain_token_and_hopeless_ones_give_plain_numbers(monkeypatch, kept):
    monkeypatch.setattr(module, "KEPT_HEAD_BYTES", kept)
    monkeypatch.setattr(module, "BLOCK_ROWS", 37)
    rows = rows_of(101, 24)
    h = (1e4 * torch.randn(5, 24, generator=torch.Generator().manual_seed(0))).requires_grad_()
    best = (h.detach() @ torch.from_numpy(rows[0].T * rows[1])).argmax(1)
    assert cross_entropy(h, best.numpy(), Head(rows)).item() < 1e-3
    cross_entropy(h, np.zeros(5, np.int64), Head(rows)).backward()
    assert torch.isfinite(h.grad).all()


def test_positions_that_do_not_count_have_no_gradient_and_are_not_computed():
    rows = rows_of(101, 24)
    h = torch.ones(4, 24, requires_grad=True)
    cross_entropy(h, np.array([IGNORED, 3, IGNORED, 7]), Head(rows)).backward()
    assert (h.grad[[0, 2]] == 0).all()
    assert (h.grad[[1, 3]] != 0).any()


def test_the_factor_before_the_loss_reaches_the_gradient():
    rows = rows_of(101, 24)
    once, thrice = (torch.ones(4, 24, requires_grad=True) for _ in range(2))
    cross_entropy(once, np.array([1, 2, 3, 4]), Head(rows)).backward()
    (3 * cross_entropy(thrice, np.array([1, 2, 3, 4]), Head(rows))).backward()
    assert torch.allclose(3 * once.grad, thrice.grad)
