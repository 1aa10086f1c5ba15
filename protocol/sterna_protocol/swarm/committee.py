"""Who decides a round: the committee that a certificate names, its quorum, its proposers."""

from __future__ import annotations

from sterna_protocol.swarm.charter import Charter
from sterna_protocol.wire.ids import sha256
from sterna_protocol.wire.limits import MAX_COMMITTEE
from sterna_protocol.wire.messages import Certificate

MIN_COMMITTEE = 4
"""Below four members a byzantine quorum tolerates nobody; the founders fill up."""


def committee(charter: Charter, certificate: Certificate | None) -> tuple[bytes, ...]:
    """Members of the round after ``certificate``, ascending; None stands for the state before round 1.

    They are the authors and attesters of its slate, plus the founders while there are fewer than four. Those
    it excludes are left out, unless nobody would remain; of more than 32, those with the lowest hashes of
    (certificate, member) remain.
    """
    if certificate is None:
        return charter.founders
    decision = certificate.decision
    excluded = set(decision.excluded)
    members = ({entry.author for entry in decision.entries} | set(decision.attesters)) - excluded
    if len(members) < MIN_COMMITTEE:
        members |= set(charter.founders) - excluded
    if not members:
        members = set(charter.founders)
    drawn = sorted(members, key=lambda member: sha256(b"sterna/sortition/1", certificate.id, member))
    return tuple(sorted(drawn[:MAX_COMMITTEE]))


def quorum(charter: Charter, members: int) -> int:
    """Votes that decide among ``members``; any two quorums share one (``majority``) or a third of them."""
    if charter.quorum == "majority":
        return members // 2 + 1
    return 2 * members // 3 + 1


def blocking(charter: Charter, members: int) -> int:
    """The fewest members without whom there is no quorum; with f faulty below it, one of them is honest."""
    return members - quorum(charter, members) + 1


def proposers(members: tuple[bytes, ...], previous: bytes) -> tuple[bytes, ...]:
    """``members`` in the order in which they propose, drawn by hash from the previous decision."""
    return tuple(sorted(members, key=lambda member: sha256(b"sterna/proposer/1", previous, member)))


def proposer(members: tuple[bytes, ...], previous: bytes, attempt: int) -> bytes:
    """The member who proposes in ``attempt``, after the decision ``previous``."""
    return proposers(members, previous)[attempt % len(members)]
