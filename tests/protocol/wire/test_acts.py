"""Acts: one encoding, bound to their swarm, signed by everybody whom they name as a signer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna_protocol.errors import BadSignature, LocalProtocolError, MalformedMessage
from sterna_protocol.wire import limits
from sterna_protocol.wire.acts import Act, ActKind, Revocation, decode_act, sign_act
from sterna_protocol.wire.messages import decode_frame
from tests.support.admission import admission, departure, revocation, rotation
from tests.support.charters import key, small_charter

CHARTER = small_charter(admission="invite")
SWARM = CHARTER.swarm_id
FOUNDER, JOINER, OTHER = key(1), key(2), key(3)
ACTS = {
    "admission": admission(CHARTER, FOUNDER, JOINER),
    "revocation": revocation(CHARTER, FOUNDER, JOINER),
    "departure": departure(CHARTER, JOINER, 3),
    "rotation": rotation(CHARTER, JOINER, OTHER),
}


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_a_frame_comes_back_as_it_was_and_verifies(act: Act) -> None:
    decoded = decode_frame(act.frame())
    assert decoded == act
    assert isinstance(decoded, Act)
    decoded.verify(SWARM)


def test_the_largest_act_fits() -> None:
    most = limits.MAX_INVITE_USES
    act = admission(CHARTER, FOUNDER, JOINER, uses=most, last_round=2**32 - 1, may_invite=most)
    assert len(act.frame()) <= 1 + limits.MAX_ACT_BYTES


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_an_act_is_good_in_its_own_swarm_only(act: Act) -> None:
    with pytest.raises(BadSignature):
        act.verify(small_charter(name="another").swarm_id)


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_each_signer_must_have_signed(act: Act) -> None:
    for missing in range(len(act.signatures)):
        signatures = list(act.signatures)
        signatures[missing] = bytes(64)
        with pytest.raises(BadSignature):
            act.model_copy(update={"signatures": tuple(signatures)}).verify(SWARM)


def test_nobody_can_use_an_invite_whose_key_he_does_not_hold() -> None:
    heard = ACTS["admission"].content
    stolen = heard.model_copy(update={"joiner": OTHER.peer})
    with pytest.raises(LocalProtocolError):
        sign_act(stolen, OTHER, swarm=SWARM)
    forged = Act(kind=ActKind.ADMISSION, body=stolen.encode(), signatures=ACTS["admission"].signatures)
    with pytest.raises(BadSignature):
        forged.verify(SWARM)


def test_the_terms_of_an_invite_are_the_inviters() -> None:
    invite = ACTS["admission"].content.invite.model_copy(update={"uses": 9})
    body = ACTS["admission"].content.model_copy(update={"invite": invite})
    forged = Act(kind=ActKind.ADMISSION, body=body.encode(), signatures=ACTS["admission"].signatures)
    with pytest.raises(BadSignature):
        forged.verify(SWARM)


def test_a_signature_too_many_or_too_few_is_malformed() -> None:
    act = ACTS["revocation"]
    with pytest.raises(MalformedMessage, match="2 signatures of 1"):
        act.model_copy(update={"signatures": act.signatures * 2}).verify(SWARM)


def test_the_kind_outside_must_be_the_one_inside() -> None:
    frame = ACTS["revocation"].frame()
    with pytest.raises(MalformedMessage, match="frame of kind 18 carries an act of kind 17"):
        decode_act(bytes((ActKind.DEPARTURE,)) + frame[1:])


def test_a_body_of_another_kind_is_malformed() -> None:
    body = Revocation(revoker=FOUNDER.peer, peer=JOINER.peer).encode()
    act = Act(kind=ActKind.ADMISSION, body=body, signatures=(bytes(64),))
    with pytest.raises(MalformedMessage, match="Admission"):
        decode_act(act.frame())


@given(st.binary(max_size=400))
def test_any_bytes_are_refused_or_canonical(data: bytes) -> None:
    for kind in ActKind:
        frame = bytes((kind,)) + data
        try:
            act = decode_act(frame)
        except MalformedMessage:
            continue
        assert act.frame() == frame


@given(st.sampled_from(sorted(ACTS)), st.data())
def test_any_mutation_is_refused_or_canonical(name: str, data: st.DataObject) -> None:
    frame = bytearray(ACTS[name].frame())
    frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    try:
        act = decode_frame(bytes(frame))
    except MalformedMessage:
        return
    assert act.frame() == bytes(frame)
