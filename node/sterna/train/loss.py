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
from sterna.train.pages import release
from sterna_kernels import Int8Matrix, int8_matmul, int8_matmul_t

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


class Head:
    """The output head: int8 rows [V, d] with a scale each.

    A small head is dequantised once. A large one stays as it is, in the mapped file: what it is multiplied
    with is rounded to two int8 limbs, 15 bits of a row's largest value (``sterna_kernels.reference``), and no
    float32 copy of the head is ever made.
    """

    def __init__(
        self, rows: tuple[NDArray[np.int8], NDArray[np.float32]], *, returns_pages: bool = False
    ) -> None:
        """
        Args:
            returns_pages: the rows lie in a mapped file, and ``logit_blocks`` gives the pages of a block back
                to the system when it goes on to the next.
        """
        self._codes, self._scale = rows
        self._returns_pages = returns_pages
        self.vocab_size = int(self._codes.shape[0])
        self._kept: Tensor | None = None

    @property
    def is_kept(self) -> bool:
        """Whether the head is dequantised as a whole."""
        return 4 * self._codes.size <= KEPT_HEAD_BYTES

    def logits(self, h: Tensor) -> Tensor:
        """Logits [T, V] of hidden states [T, d]: for a few tokens, not for training."""
        if self.is_kept:
            return h @ self._dequantised().T
        whole = Int8Matrix(self._codes, self._scale)
        return torch.from_numpy(int8_matmul(h.detach().contiguous().numpy(), whole))

    def chunk_tokens(self) -> int:
        """Tokens whose logits of one block may be alive at once."""
        return MAX_CHUNK_TOKENS if self.is_kept else MAX_STREAMED_TOKENS

    def logit_blocks(self, h: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The logits of hidden states [T, d] in blocks [T, B], each with the number of its first row."""
        if self.is_kept:
            yield 0, h @ self._dequantised().T
            return
        rows = h.detach().contiguous().numpy()
        for start in range(0, self.vocab_size, BLOCK_ROWS):
            yield start, torch.from_numpy(int8_matmul(rows, self._block(start)))
            if self._returns_pages:
                release(self._codes[start : start + BLOCK_ROWS])

    def pulled_back(self, start: int, g: Tensor) -> Tensor:
        """Gradient [T, d] of the hidden states from one of the logits [T, B] of the block at ``start``."""
        if self.is_kept:
            return g @ self._dequantised()
        return torch.from_numpy(int8_matmul_t(g.contiguous().numpy(), self._block(start)))

    def rows(self, tokens: Tensor) -> Tensor:
        """The rows [T, d] of these tokens [T]."""
        index = tokens.numpy()
        return torch.from_numpy(self._codes[index] * self._scale[index, None])

    def _block(self, start: int) -> Int8Matrix:
        end = start + BLOCK_ROWS
        return Int8Matrix(self._codes[start:end], self._scale[start:end])

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
