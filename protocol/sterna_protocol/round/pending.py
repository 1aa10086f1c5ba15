"""This node's newest delta that is in no slate yet: it is announced until it is in one, or too old."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sterna_protocol.round.chain import Chain
from sterna_protocol.round.evidence import Held
from sterna_protocol.wire.messages import Announcement, Decision, Figures


@dataclass(frozen=True, slots=True)
class Pending:
    """A trained delta. ``base_adapter``: digest of the adapter it was trained from."""

    delta: bytes
    trained_round: int
    base_adapter: bytes
    figures: Figures

    def announcement(self) -> Announcement:
        return Announcement(
            delta=self.delta,
            trained_round=self.trained_round,
            base_adapter=self.base_adapter,
            figures=self.figures,
        )

    def is_in(self, decision: Decision, me: bytes) -> bool:
        """Whether ``decision`` merges this delta of the author ``me``."""
        return any(entry.author == me and entry.delta == self.delta for entry in decision.entries)


def find_pending(me: bytes, chain: Chain, announced: Sequence[Held]) -> Pending | None:
    """The newest delta in this node's own messages ``announced`` that no slate of ``chain`` took."""
    bodies = [held.body for held in announced if isinstance(held.body, Announcement)]
    newest = max(bodies, key=lambda body: body.trained_round, default=None)
    if newest is None:
        return None
    pending = Pending(newest.delta, newest.trained_round, newest.base_adapter, newest.figures)
    for round_ in range(newest.trained_round, chain.round_):
        certificate = chain.at(round_)
        if certificate is not None and pending.is_in(certificate.decision, me):
            return None
    return pending
