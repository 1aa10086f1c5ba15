"""A certificate closes the round for good; what it left out comes with the next."""

from __future__ import annotations

import pytest

from sterna_protocol.errors import Untimely
from sterna_protocol.round.early import MAX_EARLY_PER_AUTHOR
from sterna_protocol.round.effects import (
    Closed,
    Effect,
    FetchAdapter,
    Fork,
    StoreCertificate,
    StoreOwn,
    Train,
)
from sterna_protocol.wire.messages import Kind, Prevote, decode_frame
from tests.support.founders import (
    announcement,
    certificate,
    chain_of_voids,
    decision,
    digest,
    node,
    of_type,
    signed,
)
from tests.support.virtual_peer import FIGURES, GENESIS_ADAPTER, key_of


def test_a_certificate_closes_the_round_and_opens_the_next():
    made = node()
    closing = certificate(decision(1, 2))
    effects = made.receive(3.0, closing.frame(), None)
    assert of_type(effects, StoreCertificate) == [StoreCertificate(closing)]
    assert of_type(effects, Closed) == [Closed(closing, False)]
    [fetch] = of_type(effects, FetchAdapter)
    assert fetch.adapter == digest(77)
    assert not of_type(effects, Train)
    assert made.round_ == 2
    assert made.adapter_ready(4.0, digest(77)) == []


def test_trains_for_the_next_round_when_the_adapter_is_there_and_the_last_training_is_done():
    made = node()
    made.trained(2.0, round_=1, delta=digest(0), figures=FIGURES)
    made.receive(3.0, certificate(decision(0, 2)).frame(), None)
    assert of_type(made.adapter_ready(4.0, digest(77)), Train) == [Train(2, digest(77))]


def test_a_delta_in_the_slate_is_included():
    made = node()
    made.trained(2.0, round_=1, delta=digest(0), figures=FIGURES)
    effects = made.receive(3.0, certificate(decision(0, 2)).frame(), None)
    assert of_type(effects, Closed)[0].included


def test_a_delta_that_missed_the_slate_is_announced_again():
    made = node()
    made.trained(2.0, round_=1, delta=digest(0), figures=FIGURES)
    effects = made.receive(3.0, certificate(decision(1, 2)).frame(), None)
    stored = of_type(effects, StoreOwn)
    assert [effect.kind for effect in stored] == [Kind.ANNOUNCEMENT, Kind.COMMITMENT]
    message = decode_frame(stored[0].frame)
    assert (message.round_, message.body) == (2, announcement(0).encode())


def test_training_that_ends_late_is_announced_in_the_open_round():
    made = node()
    made.receive(3.0, certificate(decision(1, 2)).frame(), None)
    effects = made.trained(9.0, round_=1, delta=digest(0), figures=FIGURES)
    message = decode_frame(of_type(effects, StoreOwn)[0].frame)
    assert (message.round_, message.body) == (2, announcement(0).encode())


def test_a_delta_that_is_too_old_is_dropped_and_training_starts_afresh():
    made = node()
    made.trained(2.0, round_=1, delta=digest(0), figures=FIGURES)
    effects: list[Effect] = []
    for closing in chain_of_voids(3):
        effects = made.receive(3.0, closing.frame(), None)
    assert made.round_ == 4
    assert of_type(effects, Train) == [Train(4, GENESIS_ADAPTER)]
    assert not of_type(effects, StoreOwn)


def test_a_closed_round_never_changes_and_a_fork_is_reported_once():
    made = node()
    made.receive(3.0, certificate(decision(1, 2)).frame(), None)
    head = made.head
    other = certificate(decision(2, 3))
    assert of_type(made.receive(4.0, other.frame(), None), Fork) == [Fork(head, other)]
    assert made.head == head
    with pytest.raises(Untimely):
        made.receive(5.0, other.frame(), None)


def test_another_quorum_for_the_same_decision_is_no_fork():
    made = node()
    made.receive(3.0, certificate(decision(1, 2)).frame(), None)
    with pytest.raises(Untimely):
        made.receive(4.0, certificate(decision(1, 2), signers=(0, 1, 2)).frame(), None)


def test_messages_of_the_next_round_wait_until_it_opens():
    made = node()
    early = signed(1, announcement(1, trained_round=2, base_adapter=digest(77)), round_=2)
    made.receive(2.0, early.frame(), None)
    assert not made.status().authors
    made.receive(3.0, certificate(decision(1, 2)).frame(), None)
    assert [author.author for author in made.status().authors] == [key_of(1).peer]


def test_an_author_can_fill_only_its_share_of_the_messages_that_wait():
    made = node(now=0.0)
    for attempt in range(MAX_EARLY_PER_AUTHOR):
        made.receive(2.0, signed(1, Prevote(choice=b""), round_=2, attempt=attempt).frame(), None)
    with pytest.raises(Untimely):
        made.receive(2.0, signed(1, Prevote(choice=b""), round_=2, attempt=99).frame(), None)
