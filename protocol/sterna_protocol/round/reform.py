"""Reform: the founders name a new committee by hand, when no quorum of the old one can be reached.

It closes the open round as void. Nodes that had closed that round otherwise refuse it: their chain is longer.
"""

from __future__ import annotations

from collections.abc import Sequence

from sterna_protocol.errors import LocalProtocolError, MalformedMessage, Untimely
from sterna_protocol.round.certificate import check_reform, make_certificate
from sterna_protocol.round.chain import Chain
from sterna_protocol.swarm.charter import Charter
from sterna_protocol.swarm.committee import quorum
from sterna_protocol.wire import base58, signing
from sterna_protocol.wire.messages import Certificate, Decision, Kind, Precommit

PREFIX = "sternareform1"


def propose_reform(chain: Chain, committee: Sequence[bytes]) -> Decision:
    """The reform of the round that ``chain`` leaves open.

    Raises:
        MalformedMessage: somebody in ``committee`` may not sit.
    """
    decision = Decision(
        round_=chain.round_,
        previous=chain.head_id,
        entries=(),
        attesters=(),
        adapter=chain.head_adapter,
        excluded=() if chain.head is None else chain.head.decision.excluded,
        committee=tuple(sorted(set(committee))),
    )
    require_current(chain, decision)
    return decision


def require_current(chain: Chain, decision: Decision) -> None:
    """Return if ``decision`` reforms the round that ``chain`` leaves open.

    Raises:
        Untimely: it is about another round, or on top of another decision: this chain is longer, or behind.
        MalformedMessage: it is no good reform.
    """
    if not decision.is_reform:
        raise MalformedMessage("not a reform: it names no committee")
    if decision.round_ < chain.round_:
        raise Untimely(
            f"this reform is of round {decision.round_}, and this node has certified up to round "
            f"{chain.round_ - 1}: its chain is longer, and it stays with it"
        )
    if decision.round_ > chain.round_:
        raise Untimely(
            f"this reform is of round {decision.round_}, and this node knows {chain.round_ - 1} rounds only: "
            "let it catch up first"
        )
    check_reform(
        decision,
        round_=chain.round_,
        previous=chain.head_id,
        previous_adapter=chain.head_adapter,
        previous_excluded=() if chain.head is None else chain.head.decision.excluded,
        roll=chain.roll,
    )


def sign_reform(charter: Charter, key: signing.SigningKey, decision: Decision) -> Certificate:
    """``decision`` with the signature of one founder."""
    return make_certificate(
        charter,
        decision,
        attempt=0,
        signatures={key.peer: key.sign(_preimage(charter, key.peer, decision))},
    )


def join_signatures(charter: Charter, one: Certificate, other: Certificate) -> Certificate:
    """The signatures of both under their one decision.

    Raises:
        LocalProtocolError: they are of two decisions.
    """
    if one.id != other.id:
        raise LocalProtocolError("signatures under two different reforms")
    both = {entry.member: entry.signature for entry in (*one.signatures, *other.signatures)}
    return make_certificate(charter, one.decision, attempt=0, signatures=both)


def missing_signatures(chain: Chain, charter: Charter, certificate: Certificate) -> int:
    """How many founders must still sign.

    Raises:
        MalformedMessage: somebody signed who is no founder.
        BadSignature: a signature does not verify.
    """
    for entry in certificate.signatures:
        if entry.member not in chain.roll.founders:
            raise MalformedMessage(f"{entry.member.hex()[:8]} is no founder")
        signing.verify(entry.member, entry.signature, _preimage(charter, entry.member, certificate.decision))
    return max(0, quorum(charter, len(chain.roll.founders)) - len(certificate.signatures))


def encode_reform(certificate: Certificate) -> str:
    """One pasteable string for the other founders."""
    return PREFIX + base58.encode(certificate.encode())


def decode_reform(text: str) -> Certificate:
    """The reform behind ``text``; white space is ignored.

    Raises:
        MalformedMessage: not a reform.
    """
    text = "".join(text.split())
    if not text.startswith(PREFIX):
        raise MalformedMessage(f"a reform starts with {PREFIX!r}, this starts with {text[: len(PREFIX)]!r}")
    certificate = Certificate.decode(base58.decode(text.removeprefix(PREFIX)))
    if not certificate.decision.is_reform:
        raise MalformedMessage("not a reform: it names no committee")
    return certificate


def _preimage(charter: Charter, founder: bytes, decision: Decision) -> bytes:
    return signing.preimage(
        swarm=charter.swarm_id,
        round_=decision.round_,
        attempt=0,
        kind=Kind.REFORM,
        author=founder,
        body=Precommit(choice=decision.id).encode(),
    )
