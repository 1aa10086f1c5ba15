"""What a ternary decoder is beside its weights: sizes, norms, activation; and the tensors that follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sterna.errors import ConfigError

# Generous ends of what a ternary decoder can be; they keep sums of sizes far from overflow and headers small.
MAX_VOCAB = 1 << 20
MAX_LAYERS = 512
MAX_HEADS = 1024
MAX_CONTEXT = 1 << 24
# The rotation works on pairs of halves; no published decoder has larger heads than 512.
MAX_HEAD_SIZE = 4096
# Published rotary bases end at 1e8.
MAX_REAL = 1e12


@dataclass(frozen=True, slots=True)
class Architecture:
    """Everything a decoder needs to know beside its weights; sizes in elements.

    ``gated`` is act(gate) * up, else act(up); ``sub_norms`` are the norms before o and down.

    Raises:
        ConfigError: a value is out of range, or values contradict each other.
    """

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    ffn_size: int
    rope_theta: float
    norm_eps: float
    activation: Literal["relu2", "silu"]
    sub_norms: bool
    gated: bool
    tied_embeddings: bool
    max_context: int

    def __post_init__(self) -> None:
        limits = {
            "vocab_size": MAX_VOCAB,
            "layers": MAX_LAYERS,
            "heads": MAX_HEADS,
            "max_context": MAX_CONTEXT,
        }
        limits |= {"kv_heads": MAX_HEADS, "head_size": MAX_HEAD_SIZE}
        for name in (
            "vocab_size",
            "hidden_size",
            "layers",
            "heads",
            "kv_heads",
            "head_size",
            "ffn_size",
            "max_context",
        ):
            value, most = getattr(self, name), limits.get(name, MAX_VOCAB)
            if type(value) is not int or not 1 <= value <= most:
                raise ConfigError(f"architecture: {name} is {value!r}, not a whole number in 1..{most}")
        for name in ("rope_theta", "norm_eps"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value <= MAX_REAL:
                raise ConfigError(f"architecture: {name} is {value!r:.40}, not a number in 0..{MAX_REAL:g}")
        for name in ("sub_norms", "gated", "tied_embeddings"):
            if type(getattr(self, name)) is not bool:
                raise ConfigError(f"architecture: {name} is {getattr(self, name)!r}, not true or false")
        if self.activation not in ("relu2", "silu"):
            raise ConfigError(f"architecture: activation is {self.activation!r}, not relu2 or silu")
        if self.heads % self.kv_heads or self.head_size % 2:
            raise ConfigError(
                f"architecture: {self.heads} heads over {self.kv_heads} kv heads of size {self.head_size}: "
                "heads must be a multiple of kv heads and the size even"
            )

    def linears(self) -> list[tuple[str, int, int]]:
        """(name, out, in) of every ternary matrix, in canonical order."""
        attention, kv = self.heads * self.head_size, self.kv_heads * self.head_size
        one = [
            ("q", attention, self.hidden_size),
            ("k", kv, self.hidden_size),
            ("v", kv, self.hidden_size),
            ("o", self.hidden_size, attention),
            ("gate", self.ffn_size, self.hidden_size),
            ("up", self.ffn_size, self.hidden_size),
            ("down", self.hidden_size, self.ffn_size),
        ]
        kept = [linear for linear in one if self.gated or linear[0] != "gate"]
        return [
            (f"layers.{layer}.{name}", out, in_) for layer in range(self.layers) for name, out, in_ in kept
        ]

    def linears_of_a_layer(self) -> tuple[tuple[str, int, int], ...]:
        """(name, out, in) of one layer's ternary matrices, with the bare names that a charter has."""
        prefix = "layers.0."
        return tuple(
            (name.removeprefix(prefix), out, in_)
            for name, out, in_ in self.linears()
            if name.startswith(prefix)
        )

    def vectors(self) -> list[tuple[str, int]]:
        """(name, size) of every norm weight, in canonical order."""
        one = [("attn_norm", self.hidden_size), ("attn_sub_norm", self.heads * self.head_size)]
        one += [("ffn_norm", self.hidden_size), ("ffn_sub_norm", self.ffn_size)]
        kept = [vector for vector in one if self.sub_norms or not vector[0].endswith("sub_norm")]
        norms = [(f"layers.{layer}.{name}", size) for layer in range(self.layers) for name, size in kept]
        return [*norms, ("final_norm", self.hidden_size)]
