"""The slate: which deltas a proposer puts together, and what a member makes of another's."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sterna_protocol.round.changes import launders
from sterna_protocol.round.consensus import Verdict
from sterna_protocol.round.pool import Pool
from sterna_protocol.swarm.committee import open_places
from sterna_protocol.swarm.roll import Branches, Roll
from sterna_protocol.wire.ids import sha256
from sterna_protocol.wire.limits import MAX_EXCLUDED
from sterna_protocol.wire.messages import Announcement, Decision, SlateEntry


def slate_id(
    round_: int, previous_adapter: bytes, entries: tuple[SlateEntry, ...], branches: Branches = ()
) -> bytes:
    """Names a merge by everything that goes into it."""
    return sha256(
        b"sterna/slate/1",
        round_.to_bytes(4, "big"),
        previous_adapter,
        *(entry.encode() for entry in entries),
        *(sha256(b"sterna/branch/1", author, branch) for author, branch in branches),
    )


def mergeable(pool: Pool, names: Sequence[bytes], roll: Roll, excluded: Collection[bytes]) -> list[bytes]:
    """Those of the announcements ``names`` that one slate may hold, as far as their authors are known.

    ``roll``: who is in the swarm by the decision in question. Strangers have their places and no more.
    """
    places = open_places(roll.charter)
    found = []
    for name in names:
        held = pool.announcements.get(name)
        if held is not None:
            author = held.message.author
            if author in excluded or not roll.may_announce(author):
                continue
            if not roll.is_full(author):
                if places == 0:
                    continue
                places -= 1
        found.append(name)
    return found


def choose_entries(
    roll: Roll, pool: Pool, quorum: int, excluded: Collection[bytes] = ()
) -> tuple[SlateEntry, ...] | None:
    """The entries of the largest slate that can be justified now; empty: void; None: too little is known."""
    limits = roll.charter.limits
    attested = mergeable(pool, pool.attested(quorum), roll, excluded)
    if len(attested) < limits.min_deltas:
        return ()
    entries: dict[bytes, SlateEntry] = {}
    for name in attested:
        held = pool.announcements.get(name)
        if held is None or held.message.author in entries:
            continue
        if isinstance(held.body, Announcement):
            entries[held.message.author] = SlateEntry(
                author=held.message.author,
                announcement=name,
                delta=held.body.delta,
                trained_round=held.body.trained_round,
            )
        if len(entries) == limits.max_deltas:
            break
    if len(entries) < limits.min_deltas:
        return None
    return tuple(entries[author] for author in sorted(entries))


def is_seen(
    roll: Roll, pool: Pool, quorum: int, decision: Decision, excluded: Collection[bytes] = ()
) -> Verdict:
    """Whether attestations and proofs held justify ``decision``; what is missing may still come.

    ``roll``: the one after the decision's changes. ``excluded``: who was excluded before.
    """
    # [REJECT] Nobody who is proven two-faced gets a new key
    if launders(decision.changes, pool.proofs()):
        return Verdict.NO
    if decision.is_void:
        # [REJECT] Void only while fewer than min_deltas deltas that may be merged surely have a quorum
        sure = mergeable(pool, pool.surely_attested(quorum), roll, decision.excluded)
        if len(sure) >= roll.charter.limits.min_deltas:
            return Verdict.NO
    # Every entry has a quorum of attestations
    elif any(len(pool.supporters(entry.announcement)) < quorum for entry in decision.entries):
        return Verdict.WAIT
    # Every member newly excluded is proven two-faced
    if not set(decision.excluded) <= set(excluded) | set(pool.proofs()):
        return Verdict.WAIT
    # Every attester named did attest
    if not set(decision.attesters) <= pool.attesters():
        return Verdict.WAIT
    return Verdict.YES


def choose_excluded(pool: Pool, excluded: Collection[bytes]) -> tuple[bytes, ...]:
    """Who was excluded before, and the members proven two-faced, as many as a decision can name."""
    new = sorted(set(pool.proofs()) - set(excluded))
    return tuple(sorted([*excluded, *new[: MAX_EXCLUDED - len(excluded)]]))


def match_entries(pool: Pool, decision: Decision) -> Verdict:
    """Whether the entries are what their announcements say; WAIT while one is unknown."""
    for entry in decision.entries:
        held = pool.announcements.get(entry.announcement)
        if held is None:
            return Verdict.WAIT
        body = held.body
        # [REJECT] An entry repeats its announcement
        if not isinstance(body, Announcement) or (entry.author, entry.delta, entry.trained_round) != (
            held.message.author,
            body.delta,
            body.trained_round,
        ):
            return Verdict.NO
    return Verdict.YES
