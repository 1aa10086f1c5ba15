"""A small swarm for tests of what is kept and what is written: charter, key, chain of certificates."""

from __future__ import annotations

import numpy as np

from sterna_protocol.merge.adapter import Adapter, encode_adapter, genesis_adapter
from sterna_protocol.swarm.charter import (
    AdapterScheme,
    AdmissionPolicy,
    Charter,
    Limits,
    Linear,
    MergeRule,
    Recipe,
    SignedCharter,
    Timing,
    sign_charter,
)
from sterna_protocol.wire.chunks import blob_digest
from sterna_protocol.wire.messages import (
    Certificate,
    CommitSignature,
    Decision,
    Figures,
    Precommit,
    SlateEntry,
    sign,
)
from sterna_protocol.wire.signing import SigningKey

KEY = SigningKey.from_seed(b"k" * 32)
FIGURES = Figures(
    loss_before_micronats=3_600_000, loss_after_micronats=3_100_000, steps=24, tokens=6144, milliseconds=900
)
LLAMA_LINEARS = (
    Linear(name="q", out_features=32, in_features=32),
    Linear(name="k", out_features=16, in_features=32),
    Linear(name="v", out_features=16, in_features=32),
    Linear(name="o", out_features=32, in_features=32),
    Linear(name="gate", out_features=48, in_features=32),
    Linear(name="up", out_features=48, in_features=32),
    Linear(name="down", out_features=32, in_features=48),
)


def charter(
    *,
    scheme: str = "cycle",
    subspaces: int = 2,
    scale: int = 3,
    layers: int = 2,
    linears: tuple[Linear, ...] = LLAMA_LINEARS,
    retention_rounds: int = 2,
    name: str = "sample",
) -> Charter:
    """A charter whose only founder is KEY."""
    return Charter.model_validate(
        {
            "version": 1,
            "name": name,
            "nonce": b"n" * 16,
            "founders": (KEY.peer,),
            "base_name": "sterna-tiny",
            "base": b"b" * 32,
            "tokenizer": b"t" * 32,
            "adapter": AdapterScheme.model_validate(
                {
                    "scheme": scheme,
                    "rank": 4,
                    "subspaces": subspaces,
                    "scale": scale,
                    "layers": layers,
                    "linears": linears,
                    "seed": b"s" * 32,
                }
            ),
            "codec": "ternary",
            "merge": MergeRule(rule="mean", trim_percent=0),
            "recipe": Recipe(
                steps=24,
                sequences_per_step=4,
                tokens_per_sequence=64,
                learning_rate_micros=3000,
                warmup_steps=2,
            ),
            "timing": Timing(train=60_000, attest=5_000, vote=2_000),
            "limits": Limits(min_deltas=1, max_deltas=8, max_staleness=1, retention_rounds=retention_rounds),
            "quorum": "majority",
            "admission": AdmissionPolicy(mode="open", max_depth=1, quota=0, open_percent=20, aged_rounds=0),
        }
    )


def signed(of: Charter) -> SignedCharter:
    return sign_charter(of, (KEY,))


def random_adapter(of: Charter, seed: int = 1) -> Adapter:
    """An adapter with B (and under ``pair`` A) drawn at random, of the size that training gives."""
    state = genesis_adapter(of).state
    change = np.random.default_rng(seed).integers(-(2**20), 2**20, state.shape, dtype=np.int32)
    return Adapter(state + change)


def certificate(
    of: Charter, round_: int, previous: bytes, *, adapter: bytes, deltas: tuple[bytes, ...] = ()
) -> Certificate:
    """The certificate of a round that KEY alone decided."""
    decision = Decision(
        round_=round_,
        previous=previous,
        entries=tuple(
            SlateEntry(author=KEY.peer, announcement=b"a" * 32, delta=delta, trained_round=round_)
            for delta in deltas
        ),
        attesters=(KEY.peer,),
        adapter=adapter,
    )
    vote = sign(KEY, swarm=of.swarm_id, round_=round_, attempt=0, body=Precommit(choice=decision.id))
    return Certificate(
        swarm=of.swarm_id,
        attempt=0,
        decision=decision,
        signatures=(CommitSignature(member=KEY.peer, signature=vote.signature),),
    )


def chain(of: Charter, rounds: int, *, last_adapter: Adapter | None = None) -> list[Certificate]:
    """Certificates of the rounds 1 to ``rounds``; the last one names ``last_adapter``."""
    certificates: list[Certificate] = []
    previous = of.swarm_id
    for round_ in range(1, rounds + 1):
        is_last = round_ == rounds and last_adapter is not None
        adapter = blob_digest(encode_adapter(of, last_adapter)) if is_last and last_adapter else bytes(32)
        certificates.append(
            certificate(of, round_, previous, adapter=adapter, deltas=(round_.to_bytes(32, "big"),))
        )
        previous = certificates[-1].id
    return certificates
