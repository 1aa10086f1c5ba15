"""Messages: frames round-trip, the largest fit, lists ascend, an equivocation is provable."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sterna_protocol.errors import BadSignature, LocalProtocolError, MalformedMessage
from sterna_protocol.wire import limits, messages
from sterna_protocol.wire.messages import (
    Announcement,
    Attestation,
    Certificate,
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
    prove,
    sign,
)
from tests.support.admission import admission
from tests.support.charters import key, small_charter

SWARM = b"s" * 32
FIGURES = Figures(
    loss_before_micronats=6_500_000,
    loss_after_micronats=5_500_000,
    steps=40,
    tokens=40_960,
    milliseconds=9_000,
)
ANNOUNCEMENT = Announcement(delta=b"d" * 32, trained_round=7, base_adapter=b"a" * 32, figures=FIGURES)


def digests(count: int) -> tuple[bytes, ...]:
    return tuple(number.to_bytes(32, "big") for number in range(1, count + 1))


def decision(entries: int = 2, attesters: int = 2) -> Decision:
    return Decision(
        round_=2**32 - 1,
        previous=b"p" * 32,
        entries=tuple(
            SlateEntry(author=author, announcement=b"n" * 32, delta=b"d" * 32, trained_round=2**32 - 1)
            for author in digests(entries)
        ),
        attesters=digests(attesters),
        adapter=b"a" * 32,
    )


def certificate(decided: Decision, signatures: int = 2) -> Certificate:
    return Certificate(
        swarm=SWARM,
        attempt=2**16 - 1,
        decision=decided,
        signatures=tuple(
            CommitSignature(member=member, signature=b"g" * 64) for member in digests(signatures)
        ),
    )


BODIES = [
    ANNOUNCEMENT,
    Attestation(accepted=digests(3)),
    Attestation(accepted=()),
    Proposal(decision=decision(), valid_attempt=0),
    Proposal(decision=decision(0, 0), valid_attempt=3),
    Prevote(choice=b"c" * 32),
    Prevote(choice=b""),
    Precommit(choice=b"c" * 32),
    Precommit(choice=b""),
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: type(body).__name__)
def test_a_signed_message_comes_back_from_its_frame(body):
    message = sign(key(1), swarm=SWARM, round_=8, attempt=1, body=body)
    frame = message.frame()
    assert frame[0] == messages.KIND_OF_BODY[type(body)]
    again = decode_frame(frame)
    assert again == message
    assert isinstance(again, Signed)
    assert again.id == message.id
    assert decode_body(again) == body
    messages.signing.verify(again.author, again.signature, again.preimage())


def test_a_certificate_comes_back_from_its_frame():
    certified = certificate(decision())
    assert decode_frame(certified.frame()) == certified
    assert certified.id == certified.decision.id
    assert certified.round_ == certified.decision.round_
    assert certificate(decision(0)).decision.is_void


def test_the_largest_messages_fit_their_frames():
    charter = small_charter(admission="invite")
    acts = [admission(charter, key(1), key(n), uses=1024, last_round=2**32 - 1) for n in range(2, 99)]
    largest = decision(limits.MAX_SLATE, limits.MAX_COMMITTEE).model_copy(
        update={"excluded": digests(limits.MAX_EXCLUDED), "changes": tuple(acts[: limits.MAX_CHANGES])}
    )
    assert len(certificate(largest, limits.MAX_COMMITTEE).frame()) <= limits.MAX_FRAME_BYTES
    for body in (
        Proposal(decision=largest, valid_attempt=2**16 - 1),
        Attestation(accepted=digests(limits.MAX_ANNOUNCEMENTS)),
    ):
        frame = sign(key(1), swarm=SWARM, round_=2**32 - 1, attempt=2**16 - 1, body=body).frame()
        assert len(frame) <= limits.MAX_FRAME_BYTES
        assert decode_frame(frame)


def test_ids_name_what_was_said_and_not_the_signature():
    message = sign(key(1), swarm=SWARM, round_=8, attempt=1, body=ANNOUNCEMENT)
    assert message.model_copy(update={"signature": b"x" * 64}).id == message.id
    for change in ({"round_": 9}, {"attempt": 2}, {"swarm": b"S" * 32}, {"kind": 2}, {"body": b""}):
        assert message.model_copy(update=change).id != message.id


@pytest.mark.parametrize(
    "build",
    [
        lambda ids: Attestation(accepted=ids),
        lambda ids: decision().model_validate(dict(decision()) | {"attesters": ids}),
        lambda ids: decision().model_validate(
            dict(decision())
            | {"entries": tuple(decision().entries[0].model_copy(update={"author": i}) for i in ids)}
        ),
        lambda ids: Certificate(
            swarm=SWARM,
            attempt=0,
            decision=decision(),
            signatures=tuple(CommitSignature(member=i, signature=b"g" * 64) for i in ids),
        ),
    ],
    ids=["attestation", "attesters", "entries", "signatures"],
)
def test_lists_ascend_without_repeats(build):
    low, high = digests(2)
    build((low, high))
    for wrong in ((high, low), (low, low)):
        with pytest.raises(ValidationError, match="ascend without repeats"):
            build(wrong)


@pytest.mark.parametrize("vote", [Prevote, Precommit])
@pytest.mark.parametrize("length", [1, 31])
def test_a_choice_is_an_id_or_empty(vote, length):
    with pytest.raises(ValidationError, match="a choice is empty or 32 bytes"):
        vote(choice=b"c" * length)


def _frame(kind: int, **changes: object) -> bytes:
    message = sign(key(1), swarm=SWARM, round_=8, attempt=1, body=ANNOUNCEMENT)
    return bytes((kind,)) + message.model_copy(update=changes).encode()


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (b"", "frame of 0 bytes"),
        (b"\x01", "frame of 1 bytes"),
        (b"\x01" + bytes(limits.MAX_FRAME_BYTES), "the limit is 16384"),
        (_frame(2), "frame of kind 2 carries a message of kind 1"),
        (_frame(Kind.CERTIFICATE), "Certificate"),
        (_frame(Kind.EVIDENCE), "Evidence"),
        (_frame(1, signature=b"x"), "signature"),
        (_frame(1, author=b"x"), "author"),
        (_frame(1, swarm=b"x"), "swarm"),
        (_frame(1, round_=2**32), "round_"),
        (_frame(1, attempt=2**16), "attempt"),
    ],
)
def test_broken_frames_are_refused(frame, message):
    with pytest.raises(MalformedMessage, match=message):
        decode_frame(frame)


@pytest.mark.parametrize("kind", [0, Kind.CERTIFICATE, Kind.EVIDENCE, 99, 255])
def test_a_kind_without_a_body_is_refused(kind):
    message = sign(key(1), swarm=SWARM, round_=8, attempt=1, body=ANNOUNCEMENT)
    with pytest.raises(MalformedMessage, match=f"no signed message has the kind {kind:d}"):
        decode_body(message.model_copy(update={"kind": int(kind)}))


@given(st.binary(max_size=400))
def test_any_frame_is_refused_or_canonical(frame):
    try:
        message = decode_frame(frame)
    except MalformedMessage:
        return
    assert message.frame() == frame


@given(st.sampled_from(BODIES), st.data())
def test_a_mutated_frame_is_refused_or_fails_its_signature(body, data):
    frame = bytearray(sign(key(1), swarm=SWARM, round_=8, attempt=1, body=body).frame())
    frame[data.draw(st.integers(0, len(frame) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises((MalformedMessage, BadSignature)):
        message = decode_frame(bytes(frame))
        assert isinstance(message, Signed)
        messages.signing.verify(message.author, message.signature, message.preimage())


class TestEvidence:
    one = sign(key(1), swarm=SWARM, round_=8, attempt=1, body=Prevote(choice=b"x" * 32))
    other = sign(key(1), swarm=SWARM, round_=8, attempt=1, body=Prevote(choice=b""))

    def test_two_messages_for_one_place_prove_themselves(self):
        evidence = prove(self.one, self.other)
        evidence.verify()
        assert decode_frame(evidence.frame()) == evidence
        assert (evidence.author, evidence.round_, evidence.attempt) == (key(1).peer, 8, 1)

    def test_their_order_does_not_matter(self):
        assert prove(self.one, self.other) == prove(self.other, self.one)

    def test_a_proof_about_the_largest_messages_is_small(self):
        first, second = (
            sign(
                key(1),
                swarm=SWARM,
                round_=8,
                attempt=1,
                body=Proposal(decision=decision(limits.MAX_SLATE, limits.MAX_COMMITTEE), valid_attempt=valid),
            )
            for valid in (0, 1)
        )
        assert len(prove(first, second).frame()) < 400

    @pytest.mark.parametrize(
        "innocent",
        [
            one,
            sign(key(1), swarm=SWARM, round_=9, attempt=1, body=Prevote(choice=b"")),
            sign(key(1), swarm=SWARM, round_=8, attempt=2, body=Prevote(choice=b"")),
            sign(key(1), swarm=b"S" * 32, round_=8, attempt=1, body=Prevote(choice=b"")),
            sign(key(1), swarm=SWARM, round_=8, attempt=1, body=Precommit(choice=b"")),
            sign(key(2), swarm=SWARM, round_=8, attempt=1, body=Prevote(choice=b"")),
        ],
        ids=["repeated", "round", "attempt", "swarm", "kind", "author"],
    )
    def test_messages_that_do_not_contradict_prove_nothing(self, innocent):
        with pytest.raises(LocalProtocolError, match="do not contradict"):
            prove(self.one, innocent)

    @pytest.mark.parametrize(
        "change",
        [
            {"author": key(2).peer},
            {"round_": 9},
            {"attempt": 2},
            {"kind": int(Kind.PRECOMMIT)},
            {"swarm": b"S" * 32},
            {"first_body": bytes(32)},
            {"second_body": b"\xff" * 32},
            {"first_signature": b"x" * 64},
            {"second_signature": b"x" * 64},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_a_forged_proof_fails(self, change):
        forged = Evidence.decode(prove(self.one, self.other).model_copy(update=change).encode())
        with pytest.raises(BadSignature):
            forged.verify()

    def test_one_message_twice_is_no_proof(self):
        evidence = prove(self.one, self.other)
        twice = evidence.model_copy(
            update={"second_body": evidence.first_body, "second_signature": evidence.first_signature}
        )
        with pytest.raises(MalformedMessage, match="ascend without repeats"):
            Evidence.decode(twice.encode())
