"""Certificates: what makes a decision well formed, and what makes it final."""

from __future__ import annotations

from collections.abc import Mapping

from sterna_protocol.errors import MalformedMessage, Untimely
from sterna_protocol.swarm.charter import Charter
from sterna_protocol.swarm.committee import committee, open_places, quorum
from sterna_protocol.swarm.roll import Roll
from sterna_protocol.wire import signing
from sterna_protocol.wire.messages import (
    Certificate,
    CommitSignature,
    Decision,
    Kind,
    Precommit,
)

Verify = signing.Verify


def previous_id(charter: Charter, certificate: Certificate | None) -> bytes:
    """What the decision after ``certificate`` names as ``previous``; the swarm id for round 1."""
    return charter.swarm_id if certificate is None else certificate.id


def check_decision(
    charter: Charter,
    decision: Decision,
    *,
    round_: int,
    previous: bytes,
    previous_adapter: bytes | None,
    previous_excluded: tuple[bytes, ...],
    members: tuple[bytes, ...],
    roll: Roll,
    verify: Verify = signing.verify,
) -> None:
    """Return if ``decision`` is well formed for this place in the chain, whatever slate it names.

    ``previous_adapter`` is None where the caller cannot know it (a light peer before round 1). ``roll`` is
    the one that the round opened with.

    Raises:
        MalformedMessage: it is not.
        BadSignature: it carries out an act that its signers did not sign.
    """
    # [REJECT] The decision is for this round
    if decision.round_ != round_:
        raise MalformedMessage(f"decision of round {decision.round_}, expected {round_}")
    # [REJECT] The decision continues this chain
    if decision.previous != previous:
        raise MalformedMessage(
            f"decision on top of {decision.previous.hex()[:8]}, expected {previous.hex()[:8]}"
        )
    # [REJECT] A reform is the founders' alone
    if decision.is_reform:
        raise MalformedMessage("a decision of the committee that names a committee")
    # [REJECT] The slate is void or has as many deltas as the charter allows
    low, high = charter.limits.min_deltas, charter.limits.max_deltas
    if decision.entries and not low <= len(decision.entries) <= high:
        raise MalformedMessage(f"slate of {len(decision.entries)} deltas, the charter says {low} to {high}")
    # [REJECT] No delta is from the future or too old
    oldest = max(1, round_ - charter.limits.max_staleness)
    for entry in decision.entries:
        if not oldest <= entry.trained_round <= round_:
            raise MalformedMessage(f"delta of round {entry.trained_round} in a slate of round {round_}")
    # [REJECT] Every attester is a member, and they are a quorum
    if not set(decision.attesters) <= set(members):
        raise MalformedMessage("an attester is not in the committee")
    needed = quorum(charter, len(members))
    if len(decision.attesters) < needed:
        raise MalformedMessage(f"{len(decision.attesters)} attesters, a quorum is {needed}")
    # [REJECT] Who was excluded stays so, and only members are added
    new = set(decision.excluded) - set(previous_excluded)
    if not set(previous_excluded) <= set(decision.excluded) or not new <= set(members):
        raise MalformedMessage("the excluded are not those before and members of this round")
    # [REJECT] No delta is of an excluded author
    if any(entry.author in decision.excluded for entry in decision.entries):
        raise MalformedMessage("a delta of an excluded author in the slate")
    # [REJECT] The chain allows each change after those before it, and whoever makes it signed it
    try:
        after = roll.changed(decision.changes, round_, decision.excluded, verify)
    except Untimely as refused:
        raise MalformedMessage(f"a change that the chain does not allow: {refused}") from refused
    # [REJECT] Every author may announce
    for entry in decision.entries:
        if not after.may_announce(entry.author):
            raise MalformedMessage(f"a delta of {entry.author.hex()[:8]}, who is not in the swarm")
    # [REJECT] Strangers fill no more than their places
    strangers = sum(not after.is_full(entry.author) for entry in decision.entries)
    if strangers > open_places(charter):
        raise MalformedMessage(f"{strangers} deltas of strangers, the charter allows {open_places(charter)}")
    # [REJECT] A void round leaves the adapter as it was
    if decision.is_void and previous_adapter is not None and decision.adapter != previous_adapter:
        raise MalformedMessage("a void decision changes the adapter")


def check_reform(
    decision: Decision,
    *,
    round_: int,
    previous: bytes,
    previous_adapter: bytes | None,
    previous_excluded: tuple[bytes, ...],
    roll: Roll,
) -> None:
    """Return if ``decision`` is a well-formed reform for this place in the chain (docs/spec/round.md).

    Raises:
        MalformedMessage: it is not.
    """
    # [REJECT] The reform is for this round of this chain
    if (decision.round_, decision.previous) != (round_, previous):
        raise MalformedMessage(
            f"reform of round {decision.round_} on top of {decision.previous.hex()[:8]}, "
            f"expected round {round_} on top of {previous.hex()[:8]}"
        )
    # [REJECT] It names a committee and changes nothing else
    if decision.entries or decision.attesters or decision.changes or decision.excluded != previous_excluded:
        raise MalformedMessage("a reform that does more than name a committee")
    if previous_adapter is not None and decision.adapter != previous_adapter:
        raise MalformedMessage("a reform changes the adapter")
    # [REJECT] Whom it names may sit
    for member in decision.committee:
        if member not in roll.listed or not roll.is_full(member) or member in decision.excluded:
            raise MalformedMessage(f"a reform names {member.hex()[:8]}, who may not sit in the committee")


def verify_certificate(
    charter: Charter,
    previous: Certificate | None,
    certificate: Certificate,
    roll: Roll,
    *,
    genesis_adapter: bytes | None = None,
    verify: Verify = signing.verify,
) -> None:
    """Return if ``certificate`` closes the round after ``previous`` (None: it closes round 1).

    ``roll`` is the one after ``previous``. ``genesis_adapter``: digest of the adapter before round 1, checked
    if that round is void.

    Raises:
        MalformedMessage: it does not follow ``previous``, or its signers are no quorum of the committee.
        BadSignature: a signature does not verify.
    """
    if certificate.decision.is_reform:
        check_signers(charter, certificate, roll.founders)
        check_reform(
            certificate.decision,
            round_=1 if previous is None else previous.round_ + 1,
            previous=previous_id(charter, previous),
            previous_adapter=genesis_adapter if previous is None else previous.decision.adapter,
            previous_excluded=() if previous is None else previous.decision.excluded,
            roll=roll,
        )
        verify_signatures(certificate, verify)
        return
    members = committee(charter, previous, roll)
    check_signers(charter, certificate, members)
    check_decision(
        charter,
        certificate.decision,
        round_=1 if previous is None else previous.round_ + 1,
        previous=previous_id(charter, previous),
        previous_adapter=genesis_adapter if previous is None else previous.decision.adapter,
        previous_excluded=() if previous is None else previous.decision.excluded,
        members=members,
        roll=roll,
        verify=verify,
    )
    verify_signatures(certificate, verify)


def check_signers(charter: Charter, certificate: Certificate, members: tuple[bytes, ...]) -> None:
    """Return if ``certificate`` names a quorum of ``members`` as its signers.

    Raises:
        MalformedMessage: it does not, or is of another swarm.
    """
    # [REJECT] The certificate is of this swarm
    if certificate.swarm != charter.swarm_id:
        raise MalformedMessage(f"certificate of swarm {certificate.swarm.hex()[:8]}")
    # [REJECT] Every signer is a member, and they are a quorum
    if not {entry.member for entry in certificate.signatures} <= set(members):
        raise MalformedMessage("a signer of the certificate is not in the committee")
    needed = quorum(charter, len(members))
    if len(certificate.signatures) < needed:
        raise MalformedMessage(f"{len(certificate.signatures)} signatures, a quorum is {needed}")


def verify_signatures(certificate: Certificate, verify: Verify = signing.verify) -> None:
    """Return if each of its signers signed the decision of ``certificate``; raises BadSignature."""
    # [REJECT] Every signature is that member's precommit for the decision in this attempt
    # [REJECT] Founders sign a reform in no attempt, so that it contradicts none of their votes
    kind = Kind.REFORM if certificate.decision.is_reform else Kind.PRECOMMIT
    if kind is Kind.REFORM and certificate.attempt != 0:
        raise MalformedMessage(f"a reform in attempt {certificate.attempt}, expected 0")
    body = Precommit(choice=certificate.id).encode()
    for entry in certificate.signatures:
        signed = signing.preimage(
            swarm=certificate.swarm,
            round_=certificate.round_,
            attempt=certificate.attempt,
            kind=kind,
            author=entry.member,
            body=body,
        )
        verify(entry.member, entry.signature, signed)


def make_certificate(
    charter: Charter, decision: Decision, *, attempt: int, signatures: Mapping[bytes, bytes]
) -> Certificate:
    """The certificate of ``decision`` from the signatures of its precommits, by member."""
    return Certificate(
        swarm=charter.swarm_id,
        attempt=attempt,
        decision=decision,
        signatures=tuple(
            CommitSignature(member=member, signature=signatures[member]) for member in sorted(signatures)
        ),
    )
