"""The invariants of the virtual network: what honest peers never store, send or say, and all agree about."""

from __future__ import annotations

from collections.abc import Mapping

from sterna_protocol.wire.messages import Certificate, Evidence, Kind, Signed, decode_frame
from tests.support.virtual_peer import GENESIS_ADAPTER, InvariantBroken, Peer, merged_adapter


class Judge:
    """Told of what honest peers store and send, at every event."""

    def __init__(self, by_id: Mapping[bytes, Peer]) -> None:
        self.violations: list[str] = []
        self.decided: dict[int, bytes] = {}
        """The id of each round's decision, as the first honest peer stored it."""
        self._by_id = by_id
        self._sent: dict[tuple[bytes, int, int, int], bytes] = {}

    def raise_violations(self) -> None:
        """Raise InvariantBroken if something was wrong that was not raised at once."""
        if self.violations:
            raise InvariantBroken("; ".join(self.violations[:3]))

    def blamed(self, peer: Peer, other: Peer, reason: object) -> None:
        """``peer`` says that ``other`` broke the protocol."""
        if peer.is_honest and other.is_honest:
            self.violations.append(f"{peer.number} blames {other.number}: {reason}")

    def certified(self, peer: Peer, certificate: Certificate) -> None:
        if not peer.is_honest:
            return
        decided = self.decided.setdefault(certificate.round_, certificate.id)
        if decided != certificate.id:
            raise InvariantBroken(f"two certificates for round {certificate.round_}")
        decision = certificate.decision
        if any(self._by_id[author].is_honest for author in decision.excluded if author in self._by_id):
            raise InvariantBroken(f"round {certificate.round_} excludes an honest peer")
        before = GENESIS_ADAPTER
        if certificate.round_ > 1:
            before = peer.disk.certificates[-1].decision.adapter
        expected = merged_adapter(before, decision.entries) if decision.entries else before
        if decision.adapter != expected:
            raise InvariantBroken(
                f"round {certificate.round_} certifies an adapter that its slate does not give"
            )

    def accused(self, peer: Peer, evidence: Evidence) -> None:
        if peer.is_honest and self._by_id[evidence.author].is_honest:
            raise InvariantBroken(f"honest peer {self._by_id[evidence.author].number} is proven two-faced")

    def said(self, peer: Peer, frame: bytes) -> None:
        message = decode_frame(frame)
        if not isinstance(message, Signed) or message.author != peer.id:
            return
        place = (message.round_, message.attempt, message.kind)
        if peer.disk.own.get(place) != frame:
            raise InvariantBroken(
                f"peer {peer.number} sends a {Kind(message.kind).name} that it has not stored"
            )
        if self._sent.setdefault((peer.id, *place), frame) != frame:
            raise InvariantBroken(f"peer {peer.number} sends two messages for {place}")
