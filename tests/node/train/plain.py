"""The decoder once more, written as plainly as its formulas, in float64 and with nothing fused.

Straight-through rounding of the activations makes autograd give the gradient the real one must approach.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sterna.train.base import Base
from sterna.train.lora import drawn_a
from sterna_kernels import TernaryMatrix
from sterna_protocol.merge.scheme import delta_parts

Factors = dict[str, tuple[Tensor, Tensor]]  # name -> (A [R, in], B [out, R])


def quantised(x: Tensor) -> Tensor:
    scale = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
    rounded = (x * scale).round().clamp(-128, 127) / scale
    return x + (rounded - x).detach()


def halved(x: Tensor) -> Tensor:
    return x + (x.float().bfloat16().double() - x).detach()


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def turned(x: Tensor, theta: float) -> Tensor:
    half = x.shape[-1] // 2
    angles = torch.outer(torch.arange(x.shape[-2]).double(), theta ** (-torch.arange(half).double() / half))
    angles = torch.cat((angles, angles), -1)
    other = torch.cat((-x[..., half:], x[..., :half]), -1)
    return x * angles.cos() + other * angles.sin()


def weights(base: Base, name: str) -> Tensor:
    """A linear's weights [out, in]: the sum of its planes, each code times its scales."""
    return torch.stack([dense(plane) for plane in base.planes(name)]).sum(0)


def dense(plane: TernaryMatrix) -> Tensor:
    """The codes of a plane, each times its scales."""
    weights = torch.from_numpy(plane.codes()).double() * plane.scale
    if plane.row_scales is not None:
        weights *= torch.tensor(plane.row_scales).double()[:, None]
    if plane.group_scales is not None:
        weights *= torch.tensor(plane.group_scales).double().repeat_interleave(plane.group_size, 1)
    return weights


def hidden(
    base: Base,
    tokens: np.ndarray,
    factors: Factors | None = None,
    scale: float = 0.0,
    *,
    rounded: bool = False,
) -> Tensor:
    """``rounded``: gate and up are in bfloat16, as large bases have them."""
    a = base.architecture
    b, t = tokens.shape

    def linear(name: str, x: Tensor) -> Tensor:
        y = F.linear(quantised(x), weights(base, name))
        if factors is not None and name in factors:
            low, high = factors[name]
            y = y + scale * (x @ low.T) @ high.T
        return y

    def norm(name: str, x: Tensor) -> Tensor:
        return rms(x, torch.tensor(base.vector(name)).double(), a.norm_eps)

    codes, scales = base.embedding
    h = torch.from_numpy(codes[tokens].astype(np.float64) * scales[tokens][..., None].astype(np.float64))
    blocked = torch.ones(t, t, dtype=torch.bool).triu(1)
    for layer in range(a.layers):
        p = f"layers.{layer}."
        x = norm(p + "attn_norm", h)
        q = turned(linear(p + "q", x).view(b, t, a.heads, a.head_size).transpose(1, 2), a.rope_theta)
        k = turned(linear(p + "k", x).view(b, t, a.kv_heads, a.head_size).transpose(1, 2), a.rope_theta)
        v = linear(p + "v", x).view(b, t, a.kv_heads, a.head_size).transpose(1, 2)
        group = a.heads // a.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = (q @ k.transpose(2, 3) / a.head_size**0.5).masked_fill(blocked, float("-inf"))
        x = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, -1)
        if a.sub_norms:
            x = norm(p + "attn_sub_norm", x)
        h = h + linear(p + "o", x)
        x = norm(p + "ffn_norm", h)
        up = linear(p + "up", x)
        active = {"relu2": lambda z: F.relu(z) ** 2, "silu": F.silu}[a.activation]
        if a.gated:
            gate = linear(p + "gate", x)
            x = active(halved(gate)) * halved(up) if rounded else active(gate) * up
        else:
            x = active(up)
        if a.sub_norms:
            x = norm(p + "ffn_sub_norm", x)
        h = h + linear(p + "down", x)
    return norm("final_norm", h)


def head_rows(base: Base) -> Tensor:
    codes, scales = base.head
    return torch.from_numpy(codes.astype(np.float64) * scales.astype(np.float64)[:, None])


def factors(scheme, state: np.ndarray) -> Factors:
    """Every subspace's A and B as float64 leaves, side by side as in the protocol."""
    found: Factors = {}
    parts = {(part.name, part.matrix): part for part in delta_parts(scheme)}
    for name in dict.fromkeys(part.name for part in delta_parts(scheme)):
        lows, highs = [], []
        for row in range(scheme.subspaces):
            if (part := parts.get((name, "a"))) is not None:
                lows.append(state[row, part.offset : part.stop].reshape(part.shape))
            else:
                lows.append(drawn_a(scheme, row, name))
            part = parts[name, "b"]
            highs.append(state[row, part.offset : part.stop].reshape(part.shape))
        low = torch.tensor(np.concatenate(lows)).double().requires_grad_()
        found[name] = (low, torch.tensor(np.concatenate(highs, 1)).double().requires_grad_())
    return found
