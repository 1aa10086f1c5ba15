"""Changes: the acts that wait for a decision, and which of them a proposer takes."""

from __future__ import annotations

from collections.abc import Collection

from sterna_protocol.errors import MalformedMessage, Untimely
from sterna_protocol.swarm.roll import Roll
from sterna_protocol.wire import signing
from sterna_protocol.wire.acts import Act, ActKind, Admission, Rotation
from sterna_protocol.wire.limits import MAX_ACTS, MAX_CHANGES

Slot = tuple[int, bytes]
"""Kind and subject: of two acts for one slot the one with the lower id is kept."""

ORDER = (ActKind.REVOCATION, ActKind.DEPARTURE, ActKind.ROTATION, ActKind.ADMISSION)
"""Who is cut off brings nobody in by the same decision."""


class Changes:
    """Acts that the chain allows in the open round, their signatures checked.

    What is kept follows from what was seen, in any order: one act a slot, of one invite as many as it has
    uses left, 256 in all; always those with the lowest ids. So an invite that is used too often lets the
    same peers in whomever one asks, and each use beyond displaces another with a chance that falls.
    """

    def __init__(self, roll: Roll, round_: int, excluded: Collection[bytes]) -> None:
        self._roll = roll
        self._round = round_
        self._excluded = excluded
        self._acts: dict[Slot, Act] = {}

    def admit(self, act: Act, verify: signing.Verify | None) -> None:
        """Return if ``act`` is new, allowed and signed. ``verify``: None where it was verified before.

        Raises:
            Untimely: it is known, or of no use now.
            MalformedMessage, BadSignature: no correct peer sends it.
        """
        # [IGNORE] The chain allows it in this round
        self._roll.check(act, self._round, self._excluded)
        # [IGNORE] It is new, and not displaced by what is held
        held = self._acts.get(_slot(act))
        if held is not None and held.id <= act.id:
            raise Untimely("an act for the same peer is held")
        rivals = self._rivals(act)
        if rivals and act.id > rivals[-1].id:
            raise Untimely("there are more acts than can be carried out")
        # [REJECT] Everybody whom it names as a signer signed it
        if verify is not None:
            act.verify(self._roll.charter.swarm_id, verify)

    def add(self, act: Act) -> list[Act]:
        """Keep an act that ``admit`` passed; returns those that it displaces."""
        slot = _slot(act)
        gone = [self._acts.pop(slot)] if slot in self._acts else []
        while rivals := self._rivals(act):
            gone.append(self._acts.pop(_slot(rivals[-1])))
        self._acts[slot] = act
        return gone

    def _rivals(self, act: Act) -> list[Act]:
        """Those of which one must go for ``act`` to be kept, by id; none while there is room for all."""
        others = [held for held in self._acts.values() if _slot(held) != _slot(act)]
        body = act.content
        if isinstance(body, Admission):
            same = [
                held
                for held in others
                if isinstance(held.content, Admission) and held.content.invite.key == body.invite.key
            ]
            if len(same) >= self._roll.left_uses(body):
                return sorted(same, key=lambda held: held.id)
        return sorted(others, key=lambda held: held.id) if len(others) >= MAX_ACTS else []

    def held(self) -> list[Act]:
        """All acts kept, by id."""
        return sorted(self._acts.values(), key=lambda act: act.id)

    def lets_in(self, peer: bytes) -> bool:
        """Whether an act that is held would admit ``peer``."""
        return (int(ActKind.ADMISSION), peer) in self._acts

    def choose(self, proven: Collection[bytes], wanted: Collection[bytes]) -> tuple[Act, ...]:
        """What a proposer carries out: the first four that the chain allows one after the other.

        ``proven``: members who are proven two-faced; ``wanted``: peers whose deltas wait to be merged, who
        are let in first.
        """
        excluded = frozenset(self._excluded) | frozenset(proven)
        acts = sorted(
            self._acts.values(),
            key=lambda act: (ORDER.index(ActKind(act.kind)), act.content.subject not in wanted, act.id),
        )
        chosen: list[Act] = []
        roll = self._roll
        for act in acts:
            try:
                roll = roll.changed((act,), self._round, excluded)
            except (Untimely, MalformedMessage):
                continue
            chosen.append(act)
            if len(chosen) == MAX_CHANGES:
                break
        return tuple(chosen)


def launders(changes: Collection[Act], proven: Collection[bytes]) -> bool:
    """Whether ``changes`` give a new key to somebody who is proven two-faced."""
    return any(isinstance(act.content, Rotation) and act.content.old in proven for act in changes)


def _slot(act: Act) -> Slot:
    return act.kind, act.content.subject
