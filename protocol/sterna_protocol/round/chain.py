"""The chain: the certificates of closed rounds, which never change."""

from __future__ import annotations

from collections.abc import Sequence

from sterna_protocol.errors import LocalProtocolError, MalformedMessage, Untimely
from sterna_protocol.round.certificate import (
    Verify,
    check_signers,
    previous_id,
    verify_certificate,
    verify_signatures,
)
from sterna_protocol.swarm.charter import Charter
from sterna_protocol.swarm.committee import committee
from sterna_protocol.swarm.roll import Branches, Roll
from sterna_protocol.wire import signing
from sterna_protocol.wire.messages import Certificate, decode_frame


class Chain:
    """Certificates from round 1 to the head, and what follows from them: the committee and the roll.

    They are kept as frames, about 2 KiB a round. ``certificates`` are trusted (they come from the own disk)
    and ascend from round 1 without gaps. ``round_`` is the open round.
    """

    def __init__(
        self,
        charter: Charter,
        genesis_adapter: bytes,
        certificates: Sequence[Certificate] = (),
        verify: Verify = signing.verify,
    ) -> None:
        self.head: Certificate | None = None
        self.roll = Roll.founding(charter)
        self._charter = charter
        self._genesis_adapter = genesis_adapter
        self._verify = verify
        self.round_ = 1
        self._frames: list[bytes] = []
        self._ids: list[bytes] = []
        self._adapters: list[bytes] = []
        self._branches: list[Branches] = []
        self._committees: list[tuple[bytes, ...]] = [committee(charter, None, self.roll)]
        self._reported: set[bytes] = set()
        for certificate in certificates:
            self.append(certificate)

    @property
    def head_id(self) -> bytes:
        return self._ids[-1] if self._ids else previous_id(self._charter, None)

    @property
    def head_adapter(self) -> bytes:
        return self._genesis_adapter if self.head is None else self.head.decision.adapter

    @property
    def committee(self) -> tuple[bytes, ...]:
        """Who decides the open round, ascending."""
        return self._committees[-1]

    def committee_at(self, round_: int) -> tuple[bytes, ...]:
        """Who decided a closed round, or decides the open one, ascending."""
        return self._committees[round_ - 1]

    def branches_at(self, round_: int) -> Branches:
        """Which authors of a closed round's slate counted together in its merge."""
        return self._branches[round_ - 1]

    def adapter_before(self, round_: int) -> bytes | None:
        """Digest of the adapter that ``round_`` started from; None if this chain does not reach there."""
        if round_ == 1:
            return self._genesis_adapter
        return self._adapters[round_ - 2] if 2 <= round_ <= self.round_ else None

    def at(self, round_: int) -> Certificate | None:
        """The certificate of a closed round; None for any other."""
        if not 1 <= round_ < self.round_:
            return None
        certificate = decode_frame(self._frames[round_ - 1])
        return certificate if isinstance(certificate, Certificate) else None

    def frames(self, first: int, count: int) -> list[bytes]:
        """Frames of up to ``count`` rounds from ``first``; none if ``first`` is not held."""
        return self._frames[first - 1 : first - 1 + count] if first >= 1 else []

    def check_next(self, certificate: Certificate) -> None:
        """Return if ``certificate`` closes the open round.

        Raises:
            Untimely: it is for another round.
            MalformedMessage, BadSignature: it is not valid.
        """
        # [IGNORE] The certificate is for the open round
        if certificate.round_ != self.round_:
            raise Untimely(f"certificate of round {certificate.round_}, round {self.round_} is open")
        verify_certificate(
            self._charter,
            self.head,
            certificate,
            self.roll,
            genesis_adapter=self._genesis_adapter if self.round_ == 1 else None,
            verify=self._verify,
        )

    def find_fork(self, certificate: Certificate) -> Certificate | None:
        """Our certificate of a closed round if a quorum signed another one too, told once per decision.

        Raises:
            MalformedMessage, BadSignature: no quorum of that round's committee signed it.
        """
        index = certificate.round_ - 1
        if not 0 <= index < len(self._ids) or self._ids[index] == certificate.id:
            return None
        if certificate.id in self._reported or len(self._reported) >= MAX_REPORTED_FORKS:
            return None
        is_reform = certificate.decision.is_reform
        check_signers(
            self._charter, certificate, self.roll.founders if is_reform else self._committees[index]
        )
        verify_signatures(certificate, self._verify)
        self._reported.add(certificate.id)
        return self.at(certificate.round_)

    def append(self, certificate: Certificate) -> None:
        """Close the open round with a certificate that ``check_next`` passed."""
        if certificate.round_ != self.round_ or certificate.decision.previous != self.head_id:
            raise LocalProtocolError(f"certificate of round {certificate.round_} does not continue the chain")
        if certificate.swarm != self._charter.swarm_id:
            raise MalformedMessage(f"certificate of swarm {certificate.swarm.hex()[:8]}")
        self._frames.append(certificate.frame())
        self._ids.append(certificate.id)
        self.round_ += 1
        self._adapters.append(certificate.decision.adapter)
        self.head = certificate
        decision = certificate.decision
        changed = self.roll.changed(decision.changes, decision.round_)
        self._branches.append(changed.branches(decision.entries))
        self.roll = self.roll.after(decision)
        self._committees.append(committee(self._charter, certificate, self.roll))


MAX_REPORTED_FORKS = 64
"""A quorum that lies can make any number of certificates; the user needs to hear of it, not of each."""
