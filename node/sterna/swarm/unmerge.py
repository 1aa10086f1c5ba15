"""A chain replayed without one contributor: exact, because merges are integers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from sterna.errors import ConfigError, Unreachable
from sterna.swarm.light import LightPeer
from sterna_protocol.merge.adapter import Adapter
from sterna_protocol.merge.codec import Delta
from sterna_protocol.merge.rules import merge
from sterna_protocol.round.chain import Chain
from sterna_protocol.swarm.charter import Charter
from sterna_protocol.wire.ids import peer_name
from sterna_protocol.wire.messages import Decision, SlateEntry


@dataclass(frozen=True, slots=True)
class Unmerged:
    """``adapter`` is what ``round_`` would have given, had no slate of ``replayed`` held the peer's deltas.

    ``by_certificate`` are the rounds with a delta of the peer whose slate is no longer served: their share
    of the peer remains. ``contributed``: all rounds that merged a delta of the peer.
    """

    adapter: Adapter
    round_: int
    contributed: tuple[int, ...]
    replayed: tuple[int, ...]
    by_certificate: tuple[int, ...]

    @property
    def is_complete(self) -> bool:
        return not self.by_certificate


async def unmerge(light: LightPeer, charter: Charter, chain: Chain, peer: bytes, round_: int) -> Unmerged:
    """Replay the slates up to ``round_`` without the deltas of ``peer``.

    The peer is its owner: deltas under keys that were rotated count too.
    From the first round with a delta of the peer on, each slate is merged again: what a rule makes of the
    others (a median, say) depends on who else is there. Deltas that the others trained meanwhile stay what
    they are, although they were trained from adapters with the peer's share.

    Raises:
        ConfigError: no slate up to ``round_`` holds a delta of the peer, or that round is not certified yet.
        Unreachable: nobody serves the deltas of the newest round with a delta of the peer any more.
    """
    decisions = {number: _decision(chain, number) for number in range(1, round_ + 1)}
    names = _names(chain, peer)
    contributed = tuple(
        number
        for number, decision in decisions.items()
        if any(entry.author in names for entry in decision.entries)
    )
    if not contributed:
        raise ConfigError(
            f"{peer_name(peer)} has no delta in rounds 1 to {round_}; sterna peers and rounds show who has"
        )
    slates, first = await _served(light, charter, decisions, names, contributed[0])
    start, adapter = await _start(light, charter, chain, first, contributed[-1])
    if adapter is None:
        raise Unreachable(
            f"the deltas of round {contributed[-1]} are no longer served, so that nothing of "
            f"{peer_name(peer)} can be taken out; charter: they are kept for "
            f"{charter.limits.retention_rounds} rounds"
        )
    replayed = tuple(range(start, round_ + 1))
    for number in replayed:
        adapter = await asyncio.to_thread(
            merge, charter, adapter, slates[number], number, chain.branches_at(number)
        )
    return Unmerged(
        adapter=adapter,
        round_=round_,
        contributed=contributed,
        replayed=replayed,
        by_certificate=tuple(number for number in contributed if number < start),
    )


Slate = list[tuple[SlateEntry, Delta]]


def _names(chain: Chain, peer: bytes) -> frozenset[bytes]:
    """``peer`` and every key that its owner had before or has now."""
    owner = chain.roll.current(peer)
    return frozenset({peer, owner} | {old for old in chain.roll.renamed if chain.roll.current(old) == owner})


async def _start(
    light: LightPeer, charter: Charter, chain: Chain, first: int, last: int
) -> tuple[int, Adapter | None]:
    """The first of the rounds ``first`` to ``last`` whose adapter before it is served, and that adapter."""
    for start in range(first, last + 1):
        before = chain.adapter_before(start)
        if before is None:
            continue
        try:
            return start, await light.adapter(charter, before)
        except Unreachable:
            continue
    return last + 1, None


async def _served(
    light: LightPeer,
    charter: Charter,
    decisions: dict[int, Decision],
    names: frozenset[bytes],
    first: int,
) -> tuple[dict[int, Slate], int]:
    """The slates without ``names`` from the newest back to ``first``, as far as all their deltas are served,
    and the first round of these."""
    slates: dict[int, Slate] = {}
    start = max(decisions) + 1
    for number in sorted(decisions, reverse=True):
        if number < first:
            break
        others = [entry for entry in decisions[number].entries if entry.author not in names]
        try:
            slates[number] = [(entry, await light.delta(charter, entry)) for entry in others]
        except Unreachable:
            break
        start = number
    return slates, start


def _decision(chain: Chain, number: int) -> Decision:
    certificate = chain.at(number)
    if certificate is None:
        raise ConfigError(f"round {number} is not certified; the newest is {chain.round_ - 1}")
    return certificate.decision
