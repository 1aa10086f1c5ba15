"""The charter that a founder gets who chooses nothing: the settings that measured best on sterna-nano."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

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

Rule = Literal["mean", "clip+mean", "trimmed", "median", "nnm+trimmed", "clip+filter"]

RULE: Final[Rule] = "clip+filter"
"""Of eight attacks it loses least to the one that hurts it most (docs/experiments/byzantine.md)."""

TRIM_PERCENT: Final = 30
"""As many liars as a committee's quorum tolerates, and no more."""

Quorum = Literal["byzantine", "majority"]
QUORUM: Final[Quorum] = "byzantine"
"""Liars are feared as much as crashes."""

AdmissionMode = Literal["invite", "open", "psk"]
ADMISSION: Final[AdmissionMode] = "invite"

STEPS: Final = 40
"""Of a peer in a round (docs/experiments/schemes.md)."""

MIN_DELTAS: Final = 2
"""A founder waits for the first other peer."""

Linears = Sequence[tuple[str, int, int]]
"""(name, out_features, in_features) of each adapted linear of one layer: ("q", 256, 256), ..."""

TRAIN_MILLISECONDS: Final = 10 * 60 * 1000
"""Longest training of a round: a laptop ten times slower than the one that needs a minute still counts."""

ATTEST_MILLISECONDS: Final = 60 * 1000
"""Longest wait for deltas: 1 MiB from each of 64 peers over 10 Mbit/s."""

VOTE_MILLISECONDS: Final = 10 * 1000
"""Longest step of the first attempt: a merge and a few gossip hops."""

TOKENS_PER_SEQUENCE = 256
"""Trained on at a time, where the base reads so many."""

RETENTION_ROUNDS: Final = 20
"""Rounds whose deltas can be fetched to verify their merge."""


def default_charter(
    *,
    name: str,
    nonce: bytes,
    founders: tuple[bytes, ...],
    base_name: str,
    base: bytes,
    tokenizer: bytes,
    layers: int,
    linears: Linears,
    seed: bytes,
    scheme: Literal["fixed", "cycle", "pair"] = "cycle",
    rank: int = 8,
    subspaces: int | None = None,
    scale: int = 2,
    codec: Literal["int8", "int4", "ternary", "top2"] = "ternary",
    rule: Rule = RULE,
    trim_percent: int = TRIM_PERCENT,
    steps: int = STEPS,
    sequences_per_step: int = 4,
    tokens_per_sequence: int = TOKENS_PER_SEQUENCE,
    learning_rate_micros: int = 16_000,
    warmup_steps: int = 4,
    train_milliseconds: int = TRAIN_MILLISECONDS,
    attest_milliseconds: int = ATTEST_MILLISECONDS,
    vote_milliseconds: int = VOTE_MILLISECONDS,
    min_deltas: int = MIN_DELTAS,
    max_deltas: int = 64,
    max_staleness: int = 2,
    retention_rounds: int = RETENTION_ROUNDS,
    quorum: Quorum = QUORUM,
    admission: AdmissionMode = ADMISSION,
    max_depth: int = 3,
    invite_quota: int = 64,
    open_percent: int = 20,
    aged_rounds: int = 5,
) -> Charter:
    """A charter over the given base; every choice can be overridden.

    ``subspaces`` is 4 for ``cycle`` and 1 for the other schemes where it is not given.

    Raises:
        pydantic.ValidationError: a value is out of its range.
    """
    return Charter(
        version=1,
        name=name,
        nonce=nonce,
        founders=tuple(sorted(founders)),
        base_name=base_name,
        base=base,
        tokenizer=tokenizer,
        adapter=AdapterScheme(
            scheme=scheme,
            rank=rank,
            subspaces=subspaces if subspaces is not None else 4 if scheme == "cycle" else 1,
            scale=scale,
            layers=layers,
            linears=tuple(
                Linear(name=linear, out_features=out_features, in_features=in_features)
                for linear, out_features, in_features in linears
            ),
            seed=seed,
        ),
        codec=codec,
        merge=MergeRule(rule=rule, trim_percent=trim_percent),
        recipe=Recipe(
            steps=steps,
            sequences_per_step=sequences_per_step,
            tokens_per_sequence=tokens_per_sequence,
            learning_rate_micros=learning_rate_micros,
            warmup_steps=warmup_steps,
        ),
        timing=Timing(train=train_milliseconds, attest=attest_milliseconds, vote=vote_milliseconds),
        limits=Limits(
            min_deltas=min_deltas,
            max_deltas=max_deltas,
            max_staleness=max_staleness,
            retention_rounds=retention_rounds,
        ),
        quorum=quorum,
        admission=AdmissionPolicy(
            mode=admission,
            max_depth=max_depth,
            quota=invite_quota,
            open_percent=open_percent,
            aged_rounds=aged_rounds,
        ),
    )
