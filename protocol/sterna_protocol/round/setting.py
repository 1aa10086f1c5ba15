"""The setting of a round: what is fixed from the moment it opens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from sterna_protocol.round.chain import Chain
from sterna_protocol.swarm.charter import Charter
from sterna_protocol.swarm.committee import blocking, proposers, quorum
from sterna_protocol.swarm.roll import Roll


@dataclass(frozen=True, slots=True)
class Setting:
    """``previous`` is the id of the decision before, ``adapter`` and ``excluded`` what it named, ``roll`` who
    is in the swarm after it; ``order`` is the members in the order in which they propose."""

    charter: Charter
    swarm: bytes
    round_: int
    previous: bytes
    adapter: bytes
    excluded: tuple[bytes, ...]
    roll: Roll
    members: tuple[bytes, ...]
    order: tuple[bytes, ...]
    quorum: int
    blocking: int

    @classmethod
    def after(cls, charter: Charter, swarm: bytes, chain: Chain) -> Self:
        """The setting of the round that ``chain`` leaves open."""
        members = chain.committee
        return cls(
            charter=charter,
            swarm=swarm,
            round_=chain.round_,
            previous=chain.head_id,
            adapter=chain.head_adapter,
            excluded=() if chain.head is None else chain.head.decision.excluded,
            roll=chain.roll,
            members=members,
            order=proposers(members, chain.head_id),
            quorum=quorum(charter, len(members)),
            blocking=blocking(charter, len(members)),
        )

    def proposer(self, attempt: int) -> bytes:
        return self.order[attempt % len(self.order)]

    @property
    def oldest_training(self) -> int:
        """The earliest round whose deltas may still enter this round's slate."""
        return max(1, self.round_ - self.charter.limits.max_staleness)
