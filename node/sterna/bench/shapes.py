"""The architectures that benchmarks build with random weights."""

from __future__ import annotations

from sterna.train.base import Architecture


def _llama_shaped(*, hidden_size: int, layers: int, heads: int, ffn_size: int) -> Architecture:
    """The 1bitLLM reproductions of BitNet b1.58: LLaMA sizes, SiLU, sub-norms."""
    return Architecture(
        vocab_size=32002,
        hidden_size=hidden_size,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_size=hidden_size // heads,
        ffn_size=ffn_size,
        rope_theta=10_000.0,
        norm_eps=1e-5,
        activation="silu",
        sub_norms=True,
        gated=True,
        tied_embeddings=False,
        max_context=2048,
    )


SHAPES: dict[str, Architecture] = {
    # The base that ships (docs/experiments/nano.md).
    "nano": Architecture(
        vocab_size=4096,
        hidden_size=256,
        layers=4,
        heads=4,
        kv_heads=2,
        head_size=64,
        ffn_size=768,
        rope_theta=10_000.0,
        norm_eps=1e-5,
        activation="relu2",
        sub_norms=True,
        gated=True,
        tied_embeddings=True,
        max_context=2048,
    ),
    "1b": _llama_shaped(hidden_size=2048, layers=24, heads=32, ffn_size=5460),
    # microsoft/bitnet-b1.58-2B-4T
    "2b": Architecture(
        vocab_size=128_256,
        hidden_size=2560,
        layers=30,
        heads=20,
        kv_heads=5,
        head_size=128,
        ffn_size=6912,
        rope_theta=500_000.0,
        norm_eps=1e-5,
        activation="relu2",
        sub_norms=True,
        gated=True,
        tied_embeddings=True,
        max_context=4096,
    ),
    "7b": _llama_shaped(hidden_size=4096, layers=32, heads=32, ffn_size=11008),
    "13b": _llama_shaped(hidden_size=5120, layers=40, heads=40, ffn_size=13824),
}
