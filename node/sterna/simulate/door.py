"""The door: who may be merged and who may sit, judged from the certified decisions alone.

Computed once more, from the specification (docs/spec/admission.md); what the code under test keeps of it is
never asked. Simulated founders invite everybody directly, so that no branch has two peers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sterna_protocol.swarm.charter import Charter
from sterna_protocol.swarm.roll import OPEN, Branches
from sterna_protocol.wire.acts import Admission
from sterna_protocol.wire.messages import Decision, SlateEntry


class Door:
    """Follows the decisions of one swarm."""

    def __init__(self, charter: Charter) -> None:
        self._charter = charter
        self._policy = charter.admission
        self._inside = dict.fromkeys(charter.founders)
        self._used: dict[bytes, int] = {}
        self._merged: dict[bytes, int] = {}

    def follow(self, decision: Decision) -> Iterator[str]:
        """Take the next decision; yields what it must not have done."""
        for act in decision.changes:
            body = act.content
            if not isinstance(body, Admission):
                yield f"round {decision.round_} carries out an act that nobody made"
                continue
            invite = body.invite
            self._used[invite.key] = self._used.get(invite.key, 0) + 1
            if invite.inviter not in self._charter.founders:
                yield f"round {decision.round_} admits a peer that no founder invited"
            if self._used[invite.key] > invite.uses:
                yield f"round {decision.round_} admits a peer by an invite that was used up"
            self._inside[body.joiner] = None
        authors = [entry.author for entry in decision.entries]
        if self._policy.mode != "open":
            for author in authors:
                if author not in self._inside:
                    yield f"round {decision.round_} merges a delta of {author.hex()[:8]}, whom nobody invited"
        places = max(1, self._charter.limits.max_deltas * self._policy.open_percent // 100)
        strangers = sum(not self.may_sit(author) for author in authors)
        if strangers > places:
            yield f"round {decision.round_} merges {strangers} deltas of strangers, {places} are allowed"
        for author in authors:
            self._merged[author] = self._merged.get(author, 0) + 1

    def may_sit(self, peer: bytes) -> bool:
        """Whether ``peer`` is no stranger."""
        return peer in self._inside or (
            self._policy.mode == "open" and self._merged.get(peer, 0) >= self._policy.aged_rounds
        )

    def branches(self, entries: Iterable[SlateEntry]) -> Branches:
        """Which authors of the next slate count together: the strangers of an open swarm."""
        if self._policy.mode != "open":
            return ()
        return tuple((entry.author, OPEN) for entry in entries if not self.may_sit(entry.author))
