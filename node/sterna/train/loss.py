"""Cross-entropy without a logits tensor: chunk by chunk, its gradient made on the way.

Shapes: T tokens, d hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sterna.train.batches import IGNORED

MAX_LOGITS_BYTES = 64 * 1024 * 1024
"""Logits alive at once: 128 tokens of a 128k vocabulary in float32."""

MAX_CHUNK_TOKENS = 128
"""With a small vocabulary a chunk this long keeps the logits in the cache: 2 MiB at 4k."""

KEPT_HEAD_BYTES = 64 * 1024 * 1024
"""A head that is smaller than this in float32 is dequantised once and kept; nano's takes 4 MiB."""

BLOCK_ROWS = 4096
"""Rows of a large head dequantised at once: 40 MiB at hidden size 2560."""


class Head:
    """The output head: int8 rows [V, d] with a scale each, in full precision when used."""

    def __init__(self, rows: tuple[NDArray[np.int8], NDArray[np.float32]]) -> None:
        self._codes, self._scale = rows
        self.vocab_size = int(self._codes.shape[0])
        self._kept: Tensor | None = None

    def logits(self, h: Tensor) -> Tensor:
        """Logits [T, V] of hidden states [T, d]: for a few tokens, not for training."""
        out = torch.empty(h.shape[0], self.vocab_size)
        for start, rows in self._blocks():
            torch.mm(h, rows.T, out=out[:, start : start + rows.shape[0]])
        return out

    def chunk_tokens(self) -> int:
        """Tokens whose logits may be alive at once."""
        return max(1, min(MAX_CHUNK_TOKENS, MAX_LOGITS_BYTES // (4 * self.vocab_size)))

    def pulled_back(self, g: Tensor) -> Tensor:
        """Gradient [T, d] of the hidden states from one of the logits [T, V]."""
        out = torch.zeros(g.shape[0], self._codes.shape[1])
        for start, rows in self._blocks():
            out.addmm_(g[:, start : start + rows.shape[0]], rows)
        return out

    def rows(self, tokens: Tensor) -> Tensor:
        """The rows [T, d] of these tokens [T]."""
        index = tokens.numpy()
        return torch.from_numpy(self._codes[index] * self._scale[index, None])

    def _blocks(self) -> Iterator[tuple[int, Tensor]]:
        if 4 * self._codes.size <= KEPT_HEAD_BYTES:
            if self._kept is None:
                self._kept = self._rows(0, self.vocab_size)
            yield 0, self._kept
            return
        for start in range(0, self.vocab_size, BLOCK_ROWS):
            yield start, self._rows(start, start + BLOCK_ROWS)

    def _rows(self, start: int, end: int) -> Tensor:
        rows = self._codes[start:end].astype(np.float32)
        rows *= self._scale[start:end, None]
        return torch.from_numpy(rows)


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
    @staticmethod
    def forward(ctx, h, targets, head):  # type: ignore[no-untyped-def]
        counted = (targets != IGNORED).nonzero().squeeze(1)
        dh = torch.zeros_like(h) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), dtype=torch.float64)
        for chunk in counted.split(head.chunk_tokens()):
            logits = head.logits(h[chunk])
            wanted = targets[chunk, None]
            largest = logits.amax(1, keepdim=True)
            above = largest - logits.gather(1, wanted)
            exponentials = logits.sub_(largest).exp_()
            sums = exponentials.sum(1, keepdim=True)
            total += (sums.log() + above).sum(dtype=torch.float64)
            if dh is not None:
                # The gradient of the logits is softmax - one-hot. Dividing by the sums after the product and
                # subtracting the wanted rows of the head saves two passes over the logits.
                dh[chunk] = head.pulled_back(exponentials).div_(sums) - head.rows(wanted[:, 0])
        ctx.save_for_backward(dh)
        return total.float()

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        (dh,) = ctx.saved_tensors
        return dh * g, None, None
