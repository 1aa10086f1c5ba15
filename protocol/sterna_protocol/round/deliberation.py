"""Deliberation: the deltas, merges and decisions of a round, and what this node makes of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

from sterna_protocol.round.changes import Changes
from sterna_protocol.round.consensus import Verdict
from sterna_protocol.round.effects import Effect, FetchDelta, Merge
from sterna_protocol.round.evidence import Held
from sterna_protocol.round.pool import Pool
from sterna_protocol.round.setting import Setting
from sterna_protocol.round.slate import choose_entries, choose_excluded, is_seen, match_entries, slate_id
from sterna_protocol.swarm.roll import Branches, Roll
from sterna_protocol.wire.acts import Act
from sterna_protocol.wire.messages import Announcement, Decision, SlateEntry

MAX_DECISIONS = 128
"""Decisions held of one round: three faces of each of 40 attempts, at most 8 KiB each."""


class Blob(Enum):
    """What is known of an announced delta."""

    FETCHING = 0
    GOOD = 1
    BAD = 2


@dataclass(frozen=True, slots=True)
class Draft:
    """What this node proposes in ``attempt`` once its merge is known."""

    attempt: int
    entries: tuple[SlateEntry, ...]
    attesters: tuple[bytes, ...]
    excluded: tuple[bytes, ...]
    changes: tuple[Act, ...]
    branches: Branches
    slate: bytes


class Deliberation:
    """Asks for blobs and merges, and judges decisions by them.

    ``attempt`` is the one the consensus is in; what could not be had is asked for once more in each, because
    it may have reached more holders. ``adapter_ready``: merges can be asked for.
    """

    def __init__(self, setting: Setting, pool: Pool, me: bytes) -> None:
        self.blobs: dict[bytes, Blob] = {}
        self.adapter_ready = False
        self.changes = Changes(setting.roll, setting.round_, setting.excluded)
        self._setting = setting
        self._pool = pool
        self._me = me
        self._decisions: dict[bytes, Decision] = {}
        self._frames: dict[bytes, bytes] = {}
        self._slates: dict[bytes, bytes] = {}
        self._rolls: dict[bytes, Roll] = {}
        self._matched: set[bytes] = set()
        self._merges: dict[bytes, bytes | None] = {}
        self._asked: set[tuple[int, bytes]] = set()
        self._draft: Draft | None = None
        self._missing: tuple[bytes, ...] = ()
        self._missing_since: object = None
        self._out: list[Effect] = []

    def may_announce(self, peer: bytes) -> bool:
        """Whether ``peer`` is in the swarm, or an act that is held would admit it."""
        return self._setting.roll.may_announce(peer) or self.changes.lets_in(peer)

    def learn(self, decision: Decision, frame: bytes) -> bytes:
        """Keep a decision and the frame of a proposal of it; returns its id."""
        choice = decision.id
        if choice not in self._decisions:
            self._decisions[choice] = decision
            self._frames[choice] = frame
            roll = self._setting.roll.changed(decision.changes, decision.round_)
            self._rolls[choice] = roll
            self._slates[choice] = self._slate_id(decision.entries, roll.branches(decision.entries))
        return choice

    def surplus(self, needed: set[bytes]) -> list[bytes]:
        """The oldest decisions beyond what is kept, without those ``needed``."""
        extra = max(0, len(self._decisions) - MAX_DECISIONS)
        return [choice for choice in self._decisions if choice not in needed][:extra]

    def forget(self, choice: bytes) -> None:
        for kept in (self._decisions, self._frames, self._slates, self._rolls):
            kept.pop(choice, None)
        self._matched.discard(choice)

    def decision(self, choice: bytes) -> Decision | None:
        return self._decisions.get(choice)

    def proposal_frame(self, choice: bytes) -> bytes:
        return self._frames[choice]

    def delta_checked(self, announcement: bytes, error: str | None) -> None:
        if self.blobs.get(announcement) is not Blob.GOOD and announcement in self.blobs:
            self.blobs[announcement] = Blob.GOOD if error is None else Blob.BAD

    def merged(self, slate: bytes, adapter: bytes) -> None:
        if slate in self._merges:
            self._merges[slate] = adapter

    def has_merged(self, adapter: bytes) -> bool:
        """Whether this node computed that adapter in this round."""
        return adapter in self._merges.values()

    def take_effects(self) -> list[Effect]:
        """What was asked for since the last call."""
        effects, self._out = self._out, []
        return effects

    def missing(self, choice: bytes) -> tuple[bytes, ...]:
        """Announcements that are needed but not held: for ``choice``, and of a quorum's deltas."""
        decision = self._decisions.get(choice)
        names = self._pool.attested(self._setting.quorum)
        seen = (names, len(self._pool.announcements), choice, decision is not None)
        if seen != self._missing_since:
            self._missing_since = seen
            if decision is not None:
                names += tuple(entry.announcement for entry in decision.entries)
            self._missing = tuple(
                dict.fromkeys(name for name in names if name not in self._pool.announcements)
            )
        return self._missing

    def fetch_announced(self, committed: Collection[bytes]) -> None:
        """Ask for the deltas of these announcements; again for those that failed once others have them."""
        for name, held in self._pool.announcements.items():
            if name in committed and self.blobs.get(name) in (None, Blob.BAD):
                self._fetch(-1 - len(self._pool.supporters(name)), name, held)

    def prepare(self, attempt: int, choice: bytes) -> None:
        """Ask for what judging ``choice`` needs."""
        decision = self._decisions.get(choice)
        if decision is not None and self._match(choice, decision) is Verdict.YES:
            branches = self._rolls[choice].branches(decision.entries)
            self._ask_merge(attempt, self._slates[choice], decision.entries, branches)

    def judge(self, choice: bytes, prevoted: bool) -> Verdict:
        """Consensus' ``Judge``."""
        decision = self._decisions.get(choice)
        if decision is None:
            return Verdict.WAIT
        recomputed = self._recompute(choice, decision)
        if recomputed is Verdict.NO or prevoted:
            return recomputed
        setting = self._setting
        seen = is_seen(self._rolls[choice], self._pool, setting.quorum, decision, setting.excluded)
        return recomputed if seen is Verdict.YES else seen

    def draft(self, attempt: int) -> Decision | None:
        """The decision to propose in ``attempt``, None until it can be justified and its merge is known.

        The slate is chosen once per attempt.
        """
        setting, pool = self._setting, self._pool
        if self._draft is None or self._draft.attempt != attempt:
            attesters = pool.honest_looking_attesters()
            if len(attesters) < setting.quorum:
                attesters = pool.attesters()
            excluded = choose_excluded(pool, setting.excluded)
            changes = self._choose_changes(excluded)
            roll = setting.roll.changed(changes, setting.round_)
            entries = choose_entries(roll, pool, setting.quorum, excluded)
            if entries is None or len(attesters) < setting.quorum:
                return None
            branches = roll.branches(entries)
            slate = self._slate_id(entries, branches)
            self._draft = Draft(
                attempt, entries, tuple(sorted(attesters)), excluded, changes, branches, slate
            )
        draft = self._draft
        adapter: bytes | None = setting.adapter
        if draft.entries:
            self._ask_merge(attempt, draft.slate, draft.entries, draft.branches)
            adapter = self._merges.get(draft.slate)
        if adapter is None:
            return None
        return Decision(
            round_=setting.round_,
            previous=setting.previous,
            entries=draft.entries,
            attesters=draft.attesters,
            adapter=adapter,
            excluded=draft.excluded,
            changes=draft.changes,
        )

    def _choose_changes(self, excluded: tuple[bytes, ...]) -> tuple[Act, ...]:
        pool = self._pool
        attested = [pool.announcements.get(name) for name in pool.attested(self._setting.quorum)]
        wanted = {held.message.author for held in attested if held is not None}
        return self.changes.choose({*excluded, *pool.proofs()}, wanted)

    def _recompute(self, choice: bytes, decision: Decision) -> Verdict:
        """Whether this node's own merge of the slate gives the adapter that the decision names."""
        if decision.is_void:
            return Verdict.YES
        matched = self._match(choice, decision)
        if matched is not Verdict.YES:
            return matched
        merge = self._merges.get(self._slates[choice])
        if merge is None:
            return Verdict.WAIT
        # [REJECT] The adapter is what the slate merges to
        return Verdict.YES if merge == decision.adapter else Verdict.NO

    def _match(self, choice: bytes, decision: Decision) -> Verdict:
        if choice in self._matched:
            return Verdict.YES
        matched = match_entries(self._pool, decision)
        if matched is Verdict.YES:
            self._matched.add(choice)
        return matched

    def _ask_merge(
        self, attempt: int, slate: bytes, entries: tuple[SlateEntry, ...], branches: Branches
    ) -> None:
        if self._merges.get(slate) is not None:
            return
        # A fetch that goes on from one attempt to the next may hang on a holder that gives nothing.
        wanting = (None, Blob.BAD) if attempt == 0 else (None, Blob.BAD, Blob.FETCHING)
        for entry in entries:
            if self.blobs.get(entry.announcement) in wanting:
                self._fetch(attempt, entry.announcement, self._pool.announcements[entry.announcement])
        are_held = all(self.blobs.get(entry.announcement) is Blob.GOOD for entry in entries)
        if entries and are_held and self.adapter_ready and (attempt, slate) not in self._asked:
            self._asked.add((attempt, slate))
            self._merges[slate] = None
            self._out.append(Merge(self._setting.round_, slate, entries, self._setting.adapter, branches))

    def _fetch(self, occasion: int, name: bytes, held: Held) -> None:
        if (occasion, name) in self._asked or not isinstance(held.body, Announcement):
            return
        self._asked.add((occasion, name))
        self.blobs[name] = Blob.FETCHING
        author = held.message.author
        holders = [author, *sorted(self._pool.supporters(name) - {author})]
        self._out.append(
            FetchDelta(
                announcement=name,
                delta=held.body.delta,
                author=author,
                trained_round=held.body.trained_round,
                holders=tuple(holder for holder in holders if holder != self._me),
            )
        )

    def _slate_id(self, entries: tuple[SlateEntry, ...], branches: Branches) -> bytes:
        return slate_id(self._setting.round_, self._setting.adapter, entries, branches)
