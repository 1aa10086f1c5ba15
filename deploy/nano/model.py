"""A b1.58 decoder in torch with trainable weights behind straight-through rounding, shaped like BitNet-2B-4T.

RMSNorm -> q, k, v -> rotary (half-rotation) -> grouped-query attention -> sub-norm -> o;
RMSNorm -> relu(gate)^2 * up -> sub-norm -> down; tied output head. (arXiv:2402.17764, arXiv:2504.12285.)
Every linear sees int8 activations and ternary weights in training already, and the embedding its int8 rows,
so nothing is lost by exporting.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes in elements; every linear has multiples of 64 on both sides."""

    vocab_size: int = 4096
    hidden_size: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_size: int = 64
    ffn_size: int = 768
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    max_context: int = 256


NANO = Shape()
TINY = Shape(
    vocab_size=512,
    hidden_size=64,
    layers=2,
    heads=2,
    kv_heads=2,
    head_size=32,
    ffn_size=192,
    max_context=128,
)
"""Whole swarms of it train in seconds: a step of 4 x 64 tokens takes a few milliseconds."""

SHAPES = {"nano": NANO, "tiny": TINY}


def ternary_codes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes in {-1, 0, 1} and the absmean scale they are multiplied with."""
    scale = weight.abs().mean().clamp(min=1e-5)
    return (weight / scale).round().clamp(-1, 1), scale


def row_codes(rows: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes per row of the embedding and their scales [rows]."""
    scale = rows.abs().amax(-1).clamp(min=1e-8) / 127
    return (rows / scale[:, None]).round().clamp(-127, 127), scale


def _through(latent: Tensor, rounded: Tensor) -> Tensor:
    return latent + (rounded - latent).detach()


class TernaryLinear(nn.Module):
    """y = W x with W ternary and x rounded to int8 per token; gradients pass straight through both."""

    def __init__(self, size_in: int, size_out: int, *, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size_out, size_in) * std)

    def forward(self, x: Tensor) -> Tensor:
        codes, scale = ternary_codes(self.weight)
        weight = _through(self.weight, codes * scale)
        x = x.float()
        step = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        rounded = _through(x, (x * step).round().clamp(-128, 127) / step)
        return F.linear(rounded, weight)


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        hidden, ffn = shape.hidden_size, shape.ffn_size
        attention, kv = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
        inner, outer = hidden**-0.5, 0.02
        self.shape = shape
        self.attn_norm = RMSNorm(hidden, shape.norm_eps)
        self.q = TernaryLinear(hidden, attention, std=inner)
        self.k = TernaryLinear(hidden, kv, std=inner)
        self.v = TernaryLinear(hidden, kv, std=inner)
        self.attn_sub_norm = RMSNorm(attention, shape.norm_eps)
        self.o = TernaryLinear(attention, hidden, std=outer)
        self.ffn_norm = RMSNorm(hidden, shape.norm_eps)
        self.gate = TernaryLinear(hidden, ffn, std=inner)
        self.up = TernaryLinear(hidden, ffn, std=inner)
        self.ffn_sub_norm = RMSNorm(ffn, shape.norm_eps)
        self.down = TernaryLinear(ffn, hidden, std=outer)

    def forward(self, h: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, t, _ = h.shape
        x = self.attn_norm(h)
        q = _rotate(self.q(x).view(b, t, -1, self.shape.head_size).transpose(1, 2), cos, sin)
        k = _rotate(self.k(x).view(b, t, -1, self.shape.head_size).transpose(1, 2), cos, sin)
        v = self.v(x).view(b, t, -1, self.shape.head_size).transpose(1, 2)
        group = self.shape.heads // self.shape.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        x = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=True)
        h = h + self.o(self.attn_sub_norm(x.transpose(1, 2).reshape(b, t, -1)))
        x = self.ffn_norm(h)
        return h + self.down(self.ffn_sub_norm(F.relu(self.gate(x)).square() * self.up(x)))


class Decoder(nn.Module):
    """Token ids [b, t] in, mean cross-entropy in nats or per-token losses [b, t] out."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Parameter(torch.randn(shape.vocab_size, shape.hidden_size) * 0.05)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.final_norm = RMSNorm(shape.hidden_size, shape.norm_eps)
        half = shape.head_size // 2
        angles = torch.outer(
            torch.arange(shape.max_context).float(), shape.rope_theta ** (-torch.arange(half).float() / half)
        )
        self.register_buffer("cos", angles.cos().repeat(1, 2), persistent=False)
        self.register_buffer("sin", angles.sin().repeat(1, 2), persistent=False)

    def logits(self, tokens: Tensor) -> Tensor:
        codes, scale = row_codes(self.embedding)
        embedding = _through(self.embedding, codes * scale[:, None])
        h = F.embedding(tokens, embedding)
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        for layer in self.layers:
            h = layer(h, cos, sin)
        return F.linear(self.final_norm(h), embedding)

    def forward(self, tokens: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        logits = self.logits(tokens).float()
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)
        return losses if reduction == "mean" else losses.view(targets.shape)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin
