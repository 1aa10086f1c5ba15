"""Cross-entropy without a logits tensor: block by block of the vocabulary, its gradient made on the way.

Shapes: T tokens, d hidden, V vocabulary, B rows of the head in one block.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sterna.train.batches import IGNORED
from sterna_kernels.torch import share_array

MAX_CHUNK_TOKENS = 128
"""With a small vocabulary a chunk this long keeps the logits in the cache: 2 MiB at 4k."""

MAX_STREAMED_TOKENS = 512
"""A large head is read once for so many tokens."""

KEPT_HEAD_BYTES = 64 * 1024 * 1024
"""A head that is smaller than this in float32 is dequantised once and kept; nano's takes 4 MiB."""

BLOCK_ROWS = 4096
"""Rows of a large head in one block: 8 MiB of logits for 512 tokens."""

SMALLEST_EXPONENT = -80.0
"""exp of anything smaller would be a denormal, which costs a hundred times as much and counts for nothing."""

LIMIT = 127 * 256
"""Largest value of two int8 limbs, high * 256 + low, as in the ternary products."""

TINY = 2.0**-100
"""The floor of a row's largest value, as for gradients in the ternary products: its inverse is finite."""

Block = tuple[int, Tensor, Tensor]
"""First row, int8 codes [B, d], float32 scales [B]."""


class Head:
    """The output head: int8 rows [V, d] with a scale each.

    A small head is dequantised once. A large one stays as it is, in the mapped file: what it is multiplied
    with is rounded to two int8 limbs, 15 bits of a row's largest value, and the products are exact in int32
    (d <= 2^17: 128 * 127 * 2^17 < 2^31). On processors with int8 instructions that is three to five times as
    fast as float32, and no float32 copy of the head is ever made.
    """

    def __init__(self, rows: tuple[NDArray[np.int8], NDArray[np.float32]]) -> None:
        self._codes, self._scale = rows
        self.vocab_size = int(self._codes.shape[0])
        self._kept: Tensor | None = None
        self._shared, self._scales = share_array(self._codes), share_array(self._scale)

    @property
    def is_kept(self) -> bool:
        """Whether the head is dequantised as a whole."""
        return 4 * self._codes.size <= KEPT_HEAD_BYTES

    def logits(self, h: Tensor) -> Tensor:
        """Logits [T, V] of hidden states [T, d]: for a few tokens, not for training."""
        out = torch.empty(h.shape[0], self.vocab_size)
        for start, block in self.logit_blocks(h):
            out[:, start : start + block.shape[1]] = block
        return out

    def chunk_tokens(self) -> int:
        """Tokens whose logits of one block may be alive at once."""
        return MAX_CHUNK_TOKENS if self.is_kept else MAX_STREAMED_TOKENS

    def logit_blocks(self, h: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The logits of hidden states [T, d] in blocks [T, B], each with the number of its first row."""
        if self.is_kept:
            yield 0, h @ self._dequantised().T
            return
        limbs, step = two_limbs(h)
        for start, codes, scale in self._blocks():
            yield start, _joined(torch._int_mm(limbs, codes.T)).mul_(step).mul_(scale)

    def pulled_back(self, start: int, g: Tensor) -> Tensor:
        """Gradient [T, d] of the hidden states from one of the logits [T, B] of the block at ``start``."""
        if self.is_kept:
            return g @ self._dequantised()
        codes, scale = self._block(start)
        limbs, step = two_limbs(g * scale)
        return _joined(torch._int_mm(limbs, codes)).mul_(step)

    def rows(self, tokens: Tensor) -> Tensor:
        """The rows [T, d] of these tokens [T]."""
        index = tokens.numpy()
        return torch.from_numpy(self._codes[index] * self._scale[index, None])

    def _blocks(self) -> Iterator[Block]:
        for start in range(0, self.vocab_size, BLOCK_ROWS):
            yield start, *self._block(start)

    def _block(self, start: int) -> tuple[Tensor, Tensor]:
        end = start + BLOCK_ROWS
        return self._shared[start:end], self._scales[start:end]

    def _dequantised(self) -> Tensor:
        if self._kept is None:
            self._kept = torch.from_numpy(self._codes * self._scale[:, None])
        return self._kept


def cross_entropy(h: Tensor, targets: NDArray[np.int64], head: Head) -> Tensor:
    """Sum of the nats of all targets, a scalar; its gradient flows to the hidden states.

    Args:
        h: hidden states [.., d].
        targets: token ids [..], or IGNORED.
    """
    flat = torch.from_numpy(targets.reshape(-1))
    total: Tensor = _CrossEntropy.apply(h.reshape(-1, h.shape[-1]), flat, head)  # type: ignore[no-untyped-call]
    return total


class _CrossEntropy(torch.autograd.Function):
    """Softmax in one pass over the vocabulary (arXiv:1805.02867): sums and gradient so far are scaled down
    whenever a block brings a larger logit.
    """

    @staticmethod
    def forward(ctx, h, targets, head):  # type: ignore[no-untyped-def]
        counted = (targets != IGNORED).nonzero().squeeze(1)
        dh = torch.zeros_like(h) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), dtype=torch.float64)
        for chunk in counted.split(head.chunk_tokens()):
            wanted = targets[chunk, None]
            largest = torch.full(wanted.shape, -torch.inf)
            sums, own = torch.zeros(wanted.shape), torch.zeros(wanted.shape)
            pulled: Tensor | None = None
            for start, logits in head.logit_blocks(h[chunk]):
                place = wanted - start
                inside = (place >= 0) & (place < logits.shape[1])
                own = torch.where(inside, logits.gather(1, place.clamp(0, logits.shape[1] - 1)), own)
                before, largest = largest, torch.maximum(largest, logits.amax(1, keepdim=True))
                exponentials = logits.sub_(largest).clamp_(min=SMALLEST_EXPONENT).exp_()
                shrink = (before - largest).exp_()
                sums = sums.mul_(shrink).add_(exponentials.sum(1, keepdim=True))
                if dh is not None:
                    block = head.pulled_back(start, exponentials)
                    pulled = block if pulled is None else pulled.mul_(shrink).add_(block)
            total += (sums.log() + (largest - own)).sum(dtype=torch.float64)
            if dh is not None and pulled is not None:
                # The gradient of the logits is softmax - one-hot. Dividing by the sums after the product and
                # subtracting the wanted rows of the head saves two passes over the logits.
                dh[chunk] = pulled.div_(sums) - head.rows(wanted[:, 0])
        ctx.save_for_backward(dh)
        return total.float()

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        (dh,) = ctx.saved_tensors
        return dh * g, None, None


def two_limbs(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 limbs [2T, n] of x [T, n], the high ones first, and the step [T, 1] that one unit stands for."""
    largest = torch.maximum(x.amax(1, keepdim=True), -x.amin(1, keepdim=True)).clamp_(min=TINY)
    codes = x.mul(LIMIT / largest).round_()
    high = codes.add(128).mul_(1 / 256).floor_()
    limbs = torch.empty(2 * x.shape[0], x.shape[1], dtype=torch.int8)
    limbs[: x.shape[0]] = high
    limbs[x.shape[0] :] = codes.add_(high, alpha=-256)
    return limbs, largest.div_(LIMIT)


def _joined(sums: Tensor) -> Tensor:
    """float32 [T, n] of the int32 sums [2T, n] of both limbs."""
    high, low = sums.chunk(2)
    return high.to(torch.float32).mul_(256).add_(low)
