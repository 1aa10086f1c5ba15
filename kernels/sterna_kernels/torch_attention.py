"""Attention of many tokens, softmax(q k^T / sqrt(e) + causal) v, where the variant in use has one of its own.

It is AMX that has, for bfloat16; the last query sees the last key. Shapes: q [b, t, h, e], k and v
[b, c, kv, e] with h a multiple of kv and t <= c.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sterna_kernels import _native


def attend_in_place(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Put the result in the place of ``q``.

    Returns:
        False, and nothing is done, where there is no attention for such tensors.

    Raises:
        ValueError: shapes do not fit.
    """
    if not attends(q, k, v):
        return False
    at = q.data_ptr()
    return _native.attend(at, k.data_ptr(), v.data_ptr(), *_sizes(q, k), at)


def attends(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether there is an attention for such tensors.

    Raises:
        ValueError: shapes do not fit.
    """
    b, t, heads, size = q.shape
    keys, kv_heads = k.shape[1:3]
    fits = k.shape == v.shape == (b, keys, kv_heads, size) and t <= keys and heads % kv_heads == 0
    if not fits:
        raise ValueError(f"q, k and v have shapes {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}")
    if torch.compiler.is_compiling() or any(x.dtype is not torch.bfloat16 for x in (q, k, v)):
        return False
    return all(x.is_contiguous() for x in (q, k, v)) and _native.attends(size)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The result [b, t, h, e] for tensors that ``attends`` takes, with gradients in bfloat16.

    Of a backward pass it keeps ``q``, ``k`` and ``v`` alone.
    """
    y: Tensor = _Attention.apply(q, k, v)  # type: ignore[no-untyped-call]
    return y


def _sizes(q: Tensor, k: Tensor) -> tuple[int, int, int, int, int, int]:
    b, t, heads, size = q.shape
    return b, t, k.shape[1], heads, k.shape[2], size


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(q, k, v)
        y = torch.empty_like(q)
        _native.attend(q.data_ptr(), k.data_ptr(), v.data_ptr(), *_sizes(q, k), y.data_ptr())
        return y

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        q, k, v = ctx.saved_tensors
        g = g.contiguous()
        gradients = [torch.empty_like(x) for x in (q, k, v)]
        places = (x.data_ptr() for x in gradients)
        _native.attend_backward(
            q.data_ptr(), k.data_ptr(), v.data_ptr(), g.data_ptr(), *_sizes(q, k), *places
        )
        return tuple(gradients)
