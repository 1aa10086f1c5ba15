"""Reform: a quorum of founders names a committee, for the round that is open and for no other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna_protocol.errors import BadSignature, LocalProtocolError, MalformedMessage, Untimely
from sterna_protocol.round.chain import Chain
from sterna_protocol.round.effects import Fork
from sterna_protocol.round.reform import (
    decode_reform,
    encode_reform,
    join_signatures,
    missing_signatures,
    propose_reform,
    require_current,
    sign_reform,
)
from sterna_protocol.wire.messages import Certificate, Decision, Proposal
from tests.protocol.round.test_admission import (
    CHARTER,
    FOUNDERS,
    JOINER,
    STRANGER,
    certified,
    decision,
    node,
    signed,
)
from tests.support.virtual_peer import GENESIS_ADAPTER, key_of


def chain(*certificates: Certificate) -> Chain:
    return Chain(CHARTER, GENESIS_ADAPTER, certificates)


def reformed(decided: Decision, *numbers: int) -> Certificate:
    first, *rest = (sign_reform(CHARTER, key_of(number), decided) for number in numbers)
    for other in rest:
        first = join_signatures(CHARTER, first, other)
    return first


COMMITTEE = tuple(sorted(key_of(number).peer for number in (0, 1)))
PROPOSED = propose_reform(chain(), COMMITTEE)


def test_a_quorum_of_founders_closes_the_open_round_and_names_who_decides_the_next() -> None:
    taking = node()
    taking.receive(1.0, reformed(PROPOSED, 0, 1, 2).frame(), None)
    assert taking.round_ == 2
    assert taking.committee == COMMITTEE
    assert taking.head_adapter == GENESIS_ADAPTER


def test_fewer_founders_close_nothing() -> None:
    with pytest.raises(MalformedMessage, match="2 signatures, a quorum is 3"):
        node().receive(1.0, reformed(PROPOSED, 0, 1).frame(), None)
    assert missing_signatures(chain(), CHARTER, reformed(PROPOSED, 0, 1)) == 1
    assert missing_signatures(chain(), CHARTER, reformed(PROPOSED, 0, 1, 3)) == 0


def test_nobody_but_founders_signs() -> None:
    with pytest.raises(MalformedMessage, match="not in the committee"):
        node().receive(1.0, reformed(PROPOSED, 0, 1, STRANGER).frame(), None)
    with pytest.raises(MalformedMessage, match="no founder"):
        missing_signatures(chain(), CHARTER, reformed(PROPOSED, STRANGER))


def test_a_founders_vote_is_no_signature_under_a_reform() -> None:
    with pytest.raises(BadSignature):
        node().receive(1.0, certified(PROPOSED).frame(), None)
    with pytest.raises(BadSignature):
        missing_signatures(chain(), CHARTER, certified(PROPOSED))


def test_a_signature_under_a_reform_contradicts_no_vote() -> None:
    """It is of a kind that no frame has, so that it can be no half of a proof."""
    with pytest.raises(MalformedMessage, match="attempt 1"):
        node().receive(1.0, reformed(PROPOSED, 0, 1, 2).model_copy(update={"attempt": 1}).frame(), None)


def test_a_node_that_has_closed_the_round_keeps_its_longer_chain_and_says_so() -> None:
    taking = node()
    ours = certified(decision(1, 2))
    taking.receive(1.0, ours.frame(), None)
    reform = reformed(PROPOSED, 0, 1, 2)
    effects = taking.receive(2.0, reform.frame(), None)
    assert [effect for effect in effects if isinstance(effect, Fork)] == [Fork(ours, reform)]
    assert taking.head == ours
    with pytest.raises(Untimely, match="its chain is longer"):
        require_current(chain(ours), PROPOSED)


@pytest.mark.parametrize(
    "change",
    [
        {"entries": decision(1, 2).entries},
        {"attesters": FOUNDERS[:3]},
        {"adapter": b"n" * 32},
        {"excluded": FOUNDERS[:1]},
        {"previous": b"p" * 32},
        {"committee": (key_of(JOINER).peer,)},
    ],
)
def test_a_reform_names_a_committee_and_does_nothing_else(change: dict[str, object]) -> None:
    wrong = PROPOSED.model_copy(update=change)
    with pytest.raises(MalformedMessage):
        node().receive(1.0, reformed(wrong, 0, 1, 2).frame(), None)
    with pytest.raises(MalformedMessage):
        require_current(chain(), wrong)


def test_no_proposal_names_a_committee() -> None:
    taking = node()
    wrong = decision(1, 2, committee=COMMITTEE)
    for number in range(4):
        with pytest.raises(MalformedMessage):
            taking.receive(1.0, signed(number, Proposal(decision=wrong, valid_attempt=0)).frame(), None)


def test_two_reforms_are_not_joined() -> None:
    other = propose_reform(chain(), FOUNDERS)
    with pytest.raises(LocalProtocolError):
        join_signatures(CHARTER, reformed(PROPOSED, 0), reformed(other, 1))


def test_its_text_comes_back_as_it_was() -> None:
    certificate = reformed(propose_reform(chain(), FOUNDERS), 0, 1)
    text = encode_reform(certificate)
    assert decode_reform(f"{text[:40]}\n {text[40:]}") == certificate
    with pytest.raises(MalformedMessage, match="names no committee"):
        decode_reform(encode_reform(certified(decision(1, 2))))


@given(st.text(max_size=60))
def test_any_text_is_refused_or_a_reform(text: str) -> None:
    for tried in (text, "sternareform1" + text):
        with pytest.raises(MalformedMessage):
            decode_reform(tried)
