"""Who decides a round: the committee that a certificate names, its quorum, its proposers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sterna_protocol.swarm.charter import Charter
from sterna_protocol.swarm.roll import Roll
from sterna_protocol.wire.ids import sha256
from sterna_protocol.wire.limits import MAX_COMMITTEE
from sterna_protocol.wire.messages import Certificate

MIN_COMMITTEE = 4
"""Below four members a byzantine quorum tolerates nobody; the founders fill up."""


MIN_BRANCHES = 4
"""With fewer branches than four, one of them always blocks a byzantine quorum: no seats could prevent it."""


def committee(charter: Charter, certificate: Certificate | None, roll: Roll) -> tuple[bytes, ...]:
    """Members of the round after ``certificate``, ascending; None stands for the state before round 1.

    They are the authors and attesters of its slate, under the keys they have now, without strangers that have
    not aged; plus the founders while there are fewer than four. Those it excludes are left out, unless nobody
    would remain. In the order of the hashes of (certificate, member), each takes a seat: 32 in all, and no
    more of one branch than leave a quorum of the others, while there are four branches. After a reform they
    are whom it names.
    """
    if certificate is None:
        return charter.founders
    decision = certificate.decision
    if decision.is_reform:
        return decision.committee
    excluded = set(decision.excluded)
    took_part = {entry.author for entry in decision.entries} | set(decision.attesters)
    members = {roll.current(member) for member in took_part} - excluded
    members = {member for member in members if roll.may_announce(member) and roll.is_full(member)}
    if len(members) < MIN_COMMITTEE:
        members |= set(roll.founders) - excluded
    if not members:
        members = set(roll.founders) or {roll.current(founder) for founder in charter.founders}
    drawn = sorted(members, key=lambda member: sha256(b"sterna/sortition/1", certificate.id, member))
    return tuple(sorted(_seated(charter, drawn, roll)))


def _seated(charter: Charter, drawn: Sequence[bytes], roll: Roll) -> list[bytes]:
    """Who of ``drawn`` takes a seat."""
    cap = MAX_COMMITTEE
    is_capped = len({roll.branch(member) for member in drawn}) >= MIN_BRANCHES
    while True:
        seats: Counter[bytes] = Counter()
        seated: list[bytes] = []
        for member in drawn:
            branch = roll.branch(member)
            if seats[branch] < cap and len(seated) < MAX_COMMITTEE:
                seats[branch] += 1
                seated.append(member)
        most = max(seats.values())
        if not is_capped or cap == 1 or most <= len(seated) - quorum(charter, len(seated)):
            return seated
        cap = most - 1


def open_places(charter: Charter) -> int:
    """Deltas of strangers that one slate may hold."""
    return max(1, charter.limits.max_deltas * charter.admission.open_percent // 100)


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
