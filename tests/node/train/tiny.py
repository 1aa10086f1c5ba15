"""A random decoder of a few thousand weights, its base file, and charters for it."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from sterna.train.base import Architecture, Base, open_base
from sterna.train.base_writer import write_base
from sterna_kernels import TernaryMatrix
from sterna_protocol.swarm.charter import (
    AdapterScheme,
    AdmissionPolicy,
    Charter,
    Limits,
    Linear,
    MergeRule,
    Recipe,
    Timing,
)

Scales = Literal["matrix", "row", "group", "planes"]
"""One scale a linear, one a row, one a row and group of 64 columns, or two planes of such groups."""

GROUP = 64

SPECIAL = ("<|pad|>", "<|bos|>", "<|eot|>", "<|user|>", "<|assistant|>")


def architecture(**changes) -> Architecture:
    sizes = {
        "vocab_size": 264,
        "hidden_size": 48,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_size": 16,
        "ffn_size": 80,
        "rope_theta": 10000.0,
        "norm_eps": 1e-5,
        "activation": "relu2",
        "sub_norms": True,
        "gated": True,
        "tied_embeddings": True,
        "max_context": 64,
    }
    return Architecture(**(sizes | changes))


def tokenizer_json(special: tuple[str, ...] = SPECIAL) -> bytes:
    """A byte-level tokenizer without merges: one token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate([*special, *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return tokenizer.to_str().encode()


def random_planes(
    rng: np.random.Generator, shape: tuple[int, int], scales: Scales
) -> tuple[TernaryMatrix, ...]:
    """A linear's planes, with sums of its rows that stay near 1; groups need a multiple of 64 columns."""
    out, in_ = shape

    def plane(scale: float) -> TernaryMatrix:
        codes = rng.integers(-1, 2, shape).astype(np.int8)
        if scales == "matrix":
            return TernaryMatrix.from_codes(codes, scale)
        if scales == "row":
            rows = rng.uniform(0.5 * scale, 1.5 * scale, out).astype(np.float32)
            return TernaryMatrix.from_codes(codes, 1.0, row_scales=rows)
        groups = rng.uniform(0.5 * scale, 1.5 * scale, (out, in_ // GROUP)).astype(np.float32)
        return TernaryMatrix.from_codes(codes, 1.0, group_scales=groups, group_size=GROUP)

    scale = float(1.5 * in_**-0.5)
    return (plane(scale), plane(scale / 3)) if scales == "planes" else (plane(scale),)


def write_tiny_base(folder: Path, *, seed: int = 0, scales: Scales = "matrix", **changes) -> Path:
    shape = architecture(**changes)
    rng = np.random.default_rng(seed)

    def rows():
        codes = rng.integers(-127, 128, (shape.vocab_size, shape.hidden_size)).astype(np.int8)
        return codes, (rng.random(shape.vocab_size) / 127 + 1e-3).astype(np.float32)

    path = folder / f"tiny{seed}.sterna"
    write_base(
        path,
        architecture=shape,
        matrices={name: random_planes(rng, (out, in_), scales) for name, out, in_ in shape.linears()},
        vectors={name: (0.5 + rng.random(size)).astype(np.float32) for name, size in shape.vectors()},
        embedding=rows(),
        head=None if shape.tied_embeddings else rows(),
        tokenizer_json=tokenizer_json(),
        name="tiny",
        provenance="random",
    )
    return path


def tiny_base(folder: Path, *, seed: int = 0, scales: Scales = "matrix", **changes) -> Base:
    return open_base(write_tiny_base(folder, seed=seed, scales=scales, **changes))


def scheme_for(
    shape: Architecture, *, scheme: str = "cycle", rank: int = 4, subspaces: int = 3
) -> AdapterScheme:
    linears = tuple(
        Linear(name=name.removeprefix("layers.0."), out_features=out, in_features=in_)
        for name, out, in_ in shape.linears()
        if name.startswith("layers.0.")
    )
    return AdapterScheme(
        scheme=scheme,
        rank=rank,
        subspaces=subspaces if scheme == "cycle" else 1,
        scale=2,
        layers=shape.layers,
        linears=linears,
        seed=sha256(b"tiny").digest(),
    )


def charter_for(
    shape: Architecture,
    *,
    scheme: str = "cycle",
    codec: str = "int8",
    steps: int = 3,
    sequences: int = 2,
    length: int = 32,
    rate_micros: int = 10_000,
) -> Charter:
    return Charter(
        version=1,
        name="tiny",
        nonce=bytes(16),
        founders=(bytes(32),),
        base_name="tiny",
        base=bytes(32),
        tokenizer=bytes(32),
        adapter=scheme_for(shape, scheme=scheme),
        codec=codec,
        merge=MergeRule(rule="mean", trim_percent=0),
        recipe=Recipe(
            steps=steps,
            sequences_per_step=sequences,
            tokens_per_sequence=length,
            learning_rate_micros=rate_micros,
            warmup_steps=1,
        ),
        timing=Timing(train=1000, attest=1000, vote=1000),
        limits=Limits(min_deltas=1, max_deltas=8, max_staleness=2, retention_rounds=2),
        quorum="byzantine",
        admission=AdmissionPolicy(mode="open", max_depth=1, quota=0, open_percent=20, aged_rounds=0),
    )


def write_text(folder: Path, *, documents: int = 30, name: str = "data.jsonl") -> Path:
    """Sentences with a pattern that can be learned."""
    path = folder / name
    rows = ({"text": f"the tern number {number} flies over the sea"} for number in range(documents))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
