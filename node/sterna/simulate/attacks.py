"""Attacks: what Byzantine peers do in place of what their node would."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from sterna.simulate.dice import Dice
from sterna_protocol.wire.messages import (
    Announcement,
    Attestation,
    Body,
    Certificate,
    Commitment,
    CommitSignature,
    Decision,
    Evidence,
    Figures,
    Kind,
    Precommit,
    Prevote,
    Proposal,
    Signed,
    SlateEntry,
    decode_body,
    decode_frame,
    sign,
)
from sterna_protocol.wire.signing import SigningKey

VOTES = frozenset({Kind.PREVOTE, Kind.PRECOMMIT})
EVERY_KIND = frozenset({Kind.COMMITMENT, Kind.ANNOUNCEMENT, Kind.ATTESTATION, Kind.PROPOSAL, *VOTES})


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """How a peer deviates from its own node; the default deviates in nothing.

    Args:
        two_faced: kinds of which it signs several messages for one place and shows any to each peer.
        shown: share of the others that it shows a message at all.
        answers: whether it answers on the sync stream.
        serves: share of the others that it gives its blobs to.
        merges: whether it says what its merges gave, or another digest.
        patience: seconds that it sits on a finished delta.
        replays: frames a second, of any round, that it sends once more.
        forges: whether it makes up certificates and evidence.
        floods: votes a second for attempts far ahead, and messages of later rounds.
        makes_up: whether it brings made-up peers along, with deltas that it serves (crowd.py).
        garbles: whether its sync responses are other than what was asked for.
        sybils: keys a second that it makes up, each to announce a delta that nobody holds.
    """

    two_faced: frozenset[Kind] = frozenset()
    shown: float = 1.0
    answers: bool = True
    serves: float = 1.0
    merges: bool = True
    patience: float = 0.0
    replays: int = 0
    forges: bool = False
    floods: int = 0
    garbles: bool = False
    sybils: int = 0
    makes_up: bool = False

    @property
    def is_active(self) -> bool:
        """Whether it sends what its node did not ask for."""
        return bool(self.replays or self.forges or self.floods or self.sybils or self.makes_up)


ATTACKS = {
    "silent": Attack(shown=0.0, answers=False, serves=0.0),
    "choosy": Attack(shown=0.5, answers=False),
    "withhold": Attack(serves=0.0),
    "withhold-half": Attack(serves=0.5),
    "lie": Attack(merges=False),
    "stale": Attack(patience=30.0, shown=0.7),
    "late": Attack(patience=14.0, two_faced=frozenset({Kind.PROPOSAL})),
    "replay": Attack(replays=4),
    "forge": Attack(forges=True),
    "flood": Attack(floods=4),
    "garble": Attack(garbles=True),
    "sybil": Attack(sybils=8),
    "equivocate-announcement": Attack(two_faced=frozenset({Kind.ANNOUNCEMENT}), answers=False),
    "equivocate-attestation": Attack(two_faced=frozenset({Kind.ATTESTATION}), answers=False),
    "equivocate-proposal": Attack(two_faced=frozenset({Kind.PROPOSAL}), answers=False),
    "equivocate-prevote": Attack(two_faced=frozenset({Kind.PREVOTE}), answers=False),
    "equivocate-precommit": Attack(two_faced=frozenset({Kind.PRECOMMIT}), answers=False),
    "equivocate-votes": Attack(two_faced=VOTES, answers=False),
    "equivocate": Attack(two_faced=EVERY_KIND, shown=0.6, answers=False),
    "everything": Attack(
        two_faced=EVERY_KIND, merges=False, serves=0.5, replays=2, forges=True, floods=1, garbles=True
    ),
}
NOTHING = Figures(loss_before_micronats=0, loss_after_micronats=0, steps=0, tokens=0, milliseconds=0)
DRAWN = tuple(ATTACKS)
"""What ``mixed`` draws from."""

CROWD = "crowd"
ATTACKS[CROWD] = Attack(makes_up=True)
MIXED = "mixed"
"""Every Byzantine peer draws one of the attacks."""


remembering_sign = lru_cache(maxsize=1 << 12)(sign)
"""``sign`` that signs the same lie once."""

Merged = Callable[[int, bytes, Sequence[SlateEntry]], bytes]
"""(round, adapter, slate) -> the adapter that the slate makes of it."""


@dataclass(slots=True)
class Gossip:
    """What those who lie together know of a round: what was said in it, by whom, and their keys."""

    keys: list[SigningKey]
    merged: Merged
    entries: dict[int, dict[bytes, SlateEntry]]
    decisions: dict[int, dict[bytes, Decision]]
    frames: list[bytes]

    def note(self, message: Signed, frame: bytes) -> None:
        """Listen to a message that anybody sends."""
        if len(self.frames) < MAX_RECORDED:
            self.frames.append(frame)
        body = decode_body(message)
        if isinstance(body, Announcement):
            self.entries.setdefault(message.round_, {})[message.author] = SlateEntry(
                author=message.author,
                announcement=message.id,
                delta=body.delta,
                trained_round=body.trained_round,
            )
        elif isinstance(body, Proposal):
            self.decisions.setdefault(message.round_, {})[body.decision.id] = body.decision


MAX_RECORDED = 4096
"""Frames kept to be replayed."""


def faces(
    attack: Attack, key: SigningKey, frame: bytes, gossip: Gossip, previous_adapter: bytes
) -> list[bytes]:
    """The frame, and the others that the peer signs for the same place."""
    message = decode_frame(frame)
    if not isinstance(message, Signed) or message.author != key.peer or message.kind not in attack.two_faced:
        return [frame]
    others = other_bodies(decode_body(message), message.round_, gossip, previous_adapter)
    return [frame] + [
        remembering_sign(
            key, swarm=message.swarm, round_=message.round_, attempt=message.attempt, body=body
        ).frame()
        for body in others
    ]


def other_bodies(body: Body, round_: int, gossip: Gossip, previous_adapter: bytes) -> Iterator[Body]:
    """What a liar says to others instead of ``body``."""
    if isinstance(body, Commitment):
        yield Commitment(announcement=bytes(reversed(body.announcement)))
    elif isinstance(body, Announcement):
        yield body.model_copy(update={"delta": bytes(reversed(body.delta))})
    elif isinstance(body, Attestation):
        yield Attestation(accepted=())
        yield Attestation(accepted=body.accepted[1:])
        every = {entry.announcement for entry in gossip.entries.get(round_, {}).values()}
        yield Attestation(accepted=tuple(sorted(every)))
    elif isinstance(body, Proposal):
        for decision in other_decisions(body.decision, gossip, previous_adapter):
            yield Proposal(decision=decision, valid_attempt=body.valid_attempt)
    else:
        for choice in (b"", *gossip.decisions.get(round_, {})):
            if choice != body.choice:
                yield type(body)(choice=choice)


def other_decisions(decision: Decision, gossip: Gossip, previous_adapter: bytes) -> Iterator[Decision]:
    """Decisions that a proposer could want and must not get: each breaks one rule, or names another slate."""

    def with_entries(entries: Sequence[SlateEntry]) -> Decision:
        adapter = gossip.merged(decision.round_, previous_adapter, entries)
        return decision.model_copy(update={"entries": tuple(entries), "adapter": adapter})

    yield with_entries(decision.entries[1:])
    yield with_entries(())
    # Deltas that were announced, whether or not a quorum attested them.
    heard = gossip.entries.get(decision.round_, {})
    yield with_entries([heard[author] for author in sorted(heard)][:64])
    # Another chain.
    yield decision.model_copy(update={"previous": bytes(reversed(decision.previous))})
    # Another adapter.
    yield decision.model_copy(update={"adapter": bytes(reversed(decision.adapter))})
    # Those who attested are only the liars.
    liars = tuple(sorted(key.peer for key in gossip.keys))
    yield decision.model_copy(update={"attesters": liars})


def uncalled(
    attack: Attack,
    dice: Dice,
    key: SigningKey,
    *,
    swarm: bytes,
    round_: int,
    adapter: bytes,
    victims: Sequence[bytes],
    gossip: Gossip,
) -> list[bytes]:
    """What an active attacker sends in one second to a peer of its choice."""
    frames: list[bytes] = []
    for _ in range(attack.replays if gossip.frames else 0):
        frames.append(dice.pick(gossip.frames))
    for _ in range(attack.floods):
        body: Body = Prevote(choice=hashlib.sha256(b"flood %d" % dice.below(1 << 30)).digest())
        frames.append(sign(key, swarm=swarm, round_=round_, attempt=dice.below(60_000), body=body).frame())
        ahead = round_ + 1 + dice.below(3)
        frames.append(sign(key, swarm=swarm, round_=ahead, attempt=dice.below(8), body=body).frame())
    for _ in range(attack.sybils):
        frames += announced_by_nobody(dice, swarm=swarm, round_=round_, adapter=adapter)
    if attack.forges:
        frames += forged(dice, key, swarm=swarm, round_=round_, victim=dice.pick(victims), gossip=gossip)
    return frames


def announced_by_nobody(dice: Dice, *, swarm: bytes, round_: int, adapter: bytes) -> Iterator[bytes]:
    """What a key made up on the spot commits to and announces; the delta does not exist."""
    stranger = SigningKey.from_seed(hashlib.sha256(b"sybil %d" % dice.below(1 << 30)).digest())
    body = Announcement(delta=stranger.peer, trained_round=round_, base_adapter=adapter, figures=NOTHING)
    announcement = sign(stranger, swarm=swarm, round_=round_, attempt=0, body=body)
    commitment = Commitment(announcement=announcement.id)
    yield sign(stranger, swarm=swarm, round_=round_, attempt=0, body=commitment).frame()
    yield announcement.frame()


def forged(
    dice: Dice, key: SigningKey, *, swarm: bytes, round_: int, victim: bytes, gossip: Gossip
) -> Iterator[bytes]:
    """A certificate that only liars signed, one with made-up signatures, a framed peer, a stolen name."""
    for decision in list(gossip.decisions.get(round_, {}).values())[-1:]:
        void = decision.model_copy(update={"entries": ()})
        for wanted in (decision, void):
            vote = Precommit(choice=wanted.id)
            true = [
                CommitSignature(
                    member=liar.peer,
                    signature=remembering_sign(
                        liar, swarm=swarm, round_=round_, attempt=0, body=vote
                    ).signature,
                )
                for liar in sorted(gossip.keys, key=lambda liar: liar.peer)
            ]
            made_up = [
                CommitSignature(member=member, signature=bytes(64))
                for member in wanted.attesters
                if member not in {liar.peer for liar in gossip.keys}
            ]
            for signatures in (true, sorted([*true, *made_up], key=lambda entry: entry.member)):
                yield Certificate(
                    swarm=swarm, attempt=0, decision=wanted, signatures=tuple(signatures[:32])
                ).frame()
    halves = sorted(hashlib.sha256(b"half %d" % dice.below(1 << 30)).digest() for _ in range(2))
    yield Evidence(
        kind=Kind.PREVOTE,
        swarm=swarm,
        round_=max(1, round_ - dice.below(3)),
        attempt=0,
        author=victim,
        first_body=halves[0],
        first_signature=bytes(64),
        second_body=halves[1],
        second_signature=bytes(64),
    ).frame()
    own = remembering_sign(key, swarm=swarm, round_=round_, attempt=0, body=Precommit(choice=b""))
    yield own.model_copy(update={"author": victim}).frame()
