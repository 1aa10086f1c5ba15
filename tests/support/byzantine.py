"""How members lie: what the virtual network puts between a Byzantine node and the others."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from sterna_protocol.wire.messages import (
    Announcement,
    Attestation,
    Body,
    Commitment,
    Kind,
    Precommit,
    Prevote,
    Proposal,
    Signed,
    decode_body,
    decode_frame,
    sign,
)
from sterna_protocol.wire.signing import SigningKey

VOTES = frozenset({Kind.PREVOTE, Kind.PRECOMMIT})
ALL = frozenset({Kind.COMMITMENT, Kind.ANNOUNCEMENT, Kind.ATTESTATION, Kind.PROPOSAL, *VOTES})


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """How a peer deviates from its own node; the default deviates in nothing.

    Args:
        two_faced: kinds of which it signs several messages for one place, and shows any to each peer.
        share: of the others, how many are shown a message at all.
        answers: whether it answers on the sync stream.
        serves: to whom it gives its blobs; "half": to peers of even number.
        merges: whether it says what its merges gave, or another digest.
    """

    two_faced: frozenset[Kind] = frozenset()
    share: float = 1.0
    answers: bool = True
    serves: Literal["all", "half", "none"] = "all"
    merges: bool = True

    def spread(
        self, rng: random.Random, key: SigningKey, frame: bytes, others: int, choices: Iterable[bytes]
    ) -> Iterator[list[bytes]]:
        """What each of the others is shown. ``choices``: ids that could be voted for."""
        faces = [frame]
        item = decode_frame(frame)
        if isinstance(item, Signed) and item.author == key.peer and item.kind in self.two_faced:
            faces += [
                sign(key, swarm=item.swarm, round_=item.round_, attempt=item.attempt, body=body).frame()
                for body in other_bodies(decode_body(item), choices)
            ]
        for _ in range(others):
            shown = 2 if len(faces) > 1 and rng.random() < 0.2 else 1
            yield rng.sample(faces, shown) if rng.random() < self.share else []

    def serves_to(self, number: int) -> bool:
        """Whether the peer of this number gets its blobs."""
        return self.serves == "all" or (self.serves == "half" and number % 2 == 0)


HONEST = Behaviour()
SILENT = Behaviour(share=0.0, answers=False, serves="none")
CHOOSY = Behaviour(share=0.5, answers=False)
WITHHOLDING = Behaviour(serves="none")
LYING = Behaviour(merges=False)
BYZANTINE = {
    "silent": SILENT,
    "choosy": CHOOSY,
    "withholding": WITHHOLDING,
    "withholding from half": Behaviour(serves="half"),
    "lying": LYING,
    "two-faced commitments": Behaviour(two_faced=frozenset({Kind.COMMITMENT}), answers=False),
    "two-faced announcements": Behaviour(two_faced=frozenset({Kind.ANNOUNCEMENT}), answers=False),
    "two-faced attestations": Behaviour(two_faced=frozenset({Kind.ATTESTATION}), answers=False),
    "two-faced proposals": Behaviour(two_faced=frozenset({Kind.PROPOSAL}), answers=False),
    "two-faced prevotes": Behaviour(two_faced=frozenset({Kind.PREVOTE}), answers=False),
    "two-faced precommits": Behaviour(two_faced=frozenset({Kind.PRECOMMIT}), answers=False),
    "two-faced votes": Behaviour(two_faced=VOTES, answers=False),
    "two-faced and choosy": Behaviour(two_faced=ALL, share=0.6, answers=False),
    "two-faced liar": Behaviour(two_faced=ALL, merges=False, serves="none"),
}


def other_bodies(body: Body, choices: Iterable[bytes]) -> Iterator[Body]:
    """What a liar says to others instead of ``body``."""
    if isinstance(body, Commitment):
        yield Commitment(announcement=bytes(reversed(body.announcement)))
    elif isinstance(body, Announcement):
        yield body.model_copy(update={"delta": bytes(reversed(body.delta))})
    elif isinstance(body, Attestation):
        yield Attestation(accepted=())
        yield Attestation(accepted=body.accepted[1:])
    elif isinstance(body, Proposal):
        for entries in (body.decision.entries[1:], body.decision.entries[:-1], ()):
            decision = body.decision.model_copy(update={"entries": entries})
            yield Proposal(decision=decision, valid_attempt=body.valid_attempt)
    elif isinstance(body, Prevote | Precommit):
        for choice in (b"", *choices):
            if choice != body.choice:
                yield type(body)(choice=choice)
