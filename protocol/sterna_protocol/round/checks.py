"""Checks of a signed message before it enters the pool, cheapest first, the signature last."""

from __future__ import annotations

from collections.abc import Callable

from sterna_protocol.errors import MalformedMessage, Untimely
from sterna_protocol.round.certificate import Verify, check_decision
from sterna_protocol.round.evidence import Held, hold, place_of, verify_held
from sterna_protocol.round.pool import AUTHORS_KINDS, Pool
from sterna_protocol.round.setting import Setting
from sterna_protocol.wire.messages import KIND_OF_BODY, Announcement, Evidence, Kind, Proposal, Signed

AdapterBefore = Callable[[int], bytes | None]
"""Digest of the adapter a round started from, None if unknown (Chain.adapter_before)."""

SIGNED_KINDS = frozenset(KIND_OF_BODY.values())
ONCE_A_ROUND = (Kind.COMMITMENT, Kind.ANNOUNCEMENT, Kind.ATTESTATION)


def check_envelope(swarm: bytes, message: Signed | Evidence) -> None:
    """Return if the message may be of this swarm, whatever the round."""
    # [REJECT] The message is of this swarm
    if message.swarm != swarm:
        raise MalformedMessage(f"message of swarm {message.swarm.hex()[:8]}")
    # [REJECT] It is of a kind that has one author
    if message.kind not in SIGNED_KINDS:
        raise MalformedMessage(f"no signed message has the kind {message.kind}")
    # [REJECT] Commitments, announcements and attestations belong to a round, not to an attempt
    if message.kind in ONCE_A_ROUND and message.attempt != 0:
        raise MalformedMessage(f"{Kind(message.kind).name} in attempt {message.attempt}, expected 0")


def check_signed(
    setting: Setting,
    pool: Pool,
    message: Signed,
    frame: bytes,
    *,
    pinned: set[int],
    wanted: Callable[[bytes], bool],
    lets_in: Callable[[bytes], bool],
    adapter_before: AdapterBefore,
    verify: Verify,
) -> Held:
    """The message, ready for the pool of the open round.

    ``pinned``: earlier attempts whose votes are still needed; ``wanted``: says of an announcement id whether
    a quorum attested it, so that it is needed even if its author announced something else too; ``lets_in``:
    says of a peer that is not in the swarm whether an act that is held would admit it.

    Raises:
        Untimely: already held, or of no use.
        MalformedMessage, BadSignature: no correct peer sends it.
    """
    check_envelope(setting.swarm, message)
    place = place_of(message)
    # [IGNORE] The message is for the open round
    if message.round_ != setting.round_:
        raise Untimely(f"message for round {message.round_}, round {setting.round_} is open")
    # [REJECT] Only members attest, propose and vote
    if message.kind not in AUTHORS_KINDS and not pool.is_member(message.author):
        raise MalformedMessage(
            f"{message.author.hex()[:8]} is not in the committee of round {setting.round_}"
        )
    # [IGNORE] The author is not excluded
    if message.author in setting.excluded and not pool.is_member(message.author):
        raise Untimely(f"{message.author.hex()[:8]} is excluded")
    # [IGNORE] The author is in the swarm, or about to be
    if message.author not in setting.members and not (
        setting.roll.may_announce(message.author) or lets_in(message.author)
    ):
        raise Untimely(f"{message.author.hex()[:8]} is not in the swarm")
    # [REJECT] Only the proposer of the attempt proposes
    if message.kind == Kind.PROPOSAL and message.author != setting.proposer(message.attempt):
        raise MalformedMessage(f"{message.author.hex()[:8]} is not the proposer of {message.attempt}")
    name = message.id
    # [IGNORE] The message is new
    if pool.has(name):
        raise Untimely("already held")
    is_taken = pool.at(place) is not None
    # [IGNORE] The place holds no message or is not yet proven two-faced, or a quorum attested this very one
    if is_taken and pool.is_conflicted(place) and not (message.kind == Kind.ANNOUNCEMENT and wanted(name)):
        raise Untimely("the author is already proven two-faced here")
    # [IGNORE] There is room for it, or a quorum attested it; what a proposal alone names may be anything
    if not is_taken and not pool.has_room(place, pinned) and name not in pool.attested(setting.quorum):
        raise Untimely("no room for this message")
    held = hold(message, frame)
    check_body(setting, held, adapter_before, verify)
    # [REJECT] The author signed it
    verify_held(held, verify)
    return held


def check_body(setting: Setting, held: Held, adapter_before: AdapterBefore, verify: Verify) -> None:
    """Return if a correct author could have written the body."""
    body = held.body
    if isinstance(body, Announcement):
        # [REJECT] The delta was trained in this round or at most max_staleness before
        if not setting.oldest_training <= body.trained_round <= setting.round_:
            raise MalformedMessage(
                f"delta of round {body.trained_round} announced in round {setting.round_}, "
                f"the oldest accepted is {setting.oldest_training}"
            )
        base = adapter_before(body.trained_round)
        # [REJECT] It was trained from the adapter certified before that round
        if base is not None and body.base_adapter != base:
            raise MalformedMessage(
                f"delta of round {body.trained_round} on adapter {body.base_adapter.hex()[:8]}, "
                f"certified was {base.hex()[:8]}"
            )
    if isinstance(body, Proposal):
        # [REJECT] It justifies itself by an earlier attempt
        if body.valid_attempt > held.message.attempt:
            raise MalformedMessage(
                f"proposal of attempt {held.message.attempt} justified by attempt {body.valid_attempt - 1}"
            )
        check_decision(
            setting.charter,
            body.decision,
            round_=setting.round_,
            previous=setting.previous,
            previous_adapter=setting.adapter,
            previous_excluded=setting.excluded,
            members=setting.members,
            roll=setting.roll,
            verify=verify,
        )


def check_evidence(
    setting: Setting, pool: Pool, evidence: Evidence, *, pinned: set[int], verify: Verify
) -> None:
    """Return if ``evidence`` proves something new about a place of the open round.

    Raises:
        Untimely: known, or of another round.
        MalformedMessage, BadSignature: it proves nothing.
    """
    check_envelope(setting.swarm, evidence)
    place = place_of(evidence)
    # [IGNORE] The evidence is about the open round, or about a member and an earlier one
    if place.round_ > setting.round_:
        raise Untimely(f"evidence of round {place.round_}, round {setting.round_} is open")
    if place.round_ < setting.round_:
        # [IGNORE] The author is a member and not proven two-faced by other evidence of an earlier round
        if place.author not in setting.members or pool.proof_of(place.author) is not None:
            raise Untimely(f"evidence of round {place.round_} about {place.author.hex()[:8]}, of no use")
        # [REJECT] The author signed both
        evidence.verify(verify)
        return
    # [IGNORE] The place is not yet proven two-faced
    if pool.is_conflicted(place):
        raise Untimely("already proven two-faced")
    # [IGNORE] The author could write there at all
    if place.kind not in AUTHORS_KINDS and place.author not in setting.members:
        raise Untimely(f"{place.author.hex()[:8]} is not in the committee of round {setting.round_}")
    # [IGNORE] There is room for it, or nothing else is proven against a member who is far ahead
    has_proof = not pool.is_member(place.author) or pool.proof_of(place.author) is not None
    if has_proof and not pool.has_room(place, pinned):
        raise Untimely("no room for this evidence")
    # [REJECT] The author signed both
    evidence.verify(verify)
