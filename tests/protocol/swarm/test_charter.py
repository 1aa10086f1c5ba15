"""The charter: signed by all founders, and refused where it contradicts itself."""

import pytest
from pydantic import ValidationError

from sterna_protocol.errors import BadSignature, LocalProtocolError, MalformedMessage
from sterna_protocol.swarm.charter import (
    AdapterScheme,
    Charter,
    SignedCharter,
    decode_signed_charter,
    sign_charter,
)
from sterna_protocol.wire.limits import MAX_CHARTER_BYTES
from tests.support.charters import TINY, key, small_charter

FOUNDERS = tuple(sorted((key(1), key(2)), key=lambda founder: founder.peer))
TWO_FOUNDERS = small_charter(founders=tuple(founder.peer for founder in FOUNDERS))


def test_a_signed_charter_comes_back_and_verifies():
    data = sign_charter(TWO_FOUNDERS, FOUNDERS).encode()
    assert decode_signed_charter(data, TWO_FOUNDERS.swarm_id).charter == TWO_FOUNDERS


def test_the_keys_may_come_in_any_order():
    assert sign_charter(TWO_FOUNDERS, FOUNDERS[::-1]) == sign_charter(TWO_FOUNDERS, FOUNDERS)


def test_every_founder_must_sign():
    with pytest.raises(LocalProtocolError, match="no key for the founder"):
        sign_charter(TWO_FOUNDERS, FOUNDERS[:1])
    signed = sign_charter(TWO_FOUNDERS, FOUNDERS)
    for signatures in (signed.signatures[:1], signed.signatures * 2):
        with pytest.raises(MalformedMessage, match="the charter has 2 founders"):
            signed.model_copy(update={"signatures": signatures}).verify()
    with pytest.raises(BadSignature):
        signed.model_copy(update={"signatures": signed.signatures[::-1]}).verify()


def test_another_swarms_charter_is_refused():
    data = sign_charter(TWO_FOUNDERS, FOUNDERS).encode()
    with pytest.raises(MalformedMessage, match=r"charter of swarm .* expected"):
        decode_signed_charter(data, b"x" * 32)


def test_a_changed_charter_is_another_swarm():
    assert small_charter(nonce=b"x" * 16).swarm_id != small_charter().swarm_id
    assert small_charter(steps=41).swarm_id != small_charter().swarm_id


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "name"),
        ({"name": "n" * 65}, "name"),
        ({"name": "clear \x1b[2J"}, "pattern"),
        ({"name": "right to left \u202e"}, "pattern"),
        ({"base_name": "line\nbreak"}, "pattern"),
        ({"nonce": b"short"}, "nonce"),
        ({"founders": ()}, "founders"),
        ({"founders": tuple(key(i).peer for i in range(9))}, "founders"),
        ({"layers": 0}, "layers"),
        ({"rank": 0}, "rank"),
        ({"rank": 257}, "rank"),
        ({"scheme": "fixed", "subspaces": 2}, "scheme fixed has one subspace, got 2"),
        ({"scheme": "pair", "subspaces": 2}, "scheme pair has one subspace, got 2"),
        ({"scheme": "other"}, "scheme"),
        ({"codec": "float"}, "codec"),
        ({"rule": "best"}, "rule"),
        ({"trim_percent": 46}, "trim_percent"),
        ({"linears": ()}, "linears"),
        ({"linears": (TINY[0], TINY[0])}, "linears repeat a name"),
        ({"linears": (("Q", 6, 4),)}, "pattern"),
        ({"linears": (("q.x", 6, 4),)}, "pattern"),
        ({"linears": (("q\n", 6, 4),)}, "pattern"),
        ({"linears": (("q", 2**24, 4),), "rank": 256}, "an adapter of 4 x .* the limit is"),
        ({"min_deltas": 5, "max_deltas": 4}, "min_deltas 5 is over max_deltas 4"),
        ({"max_deltas": 65}, "max_deltas"),
        ({"max_staleness": 3}, "max_staleness"),
        ({"quorum": "one"}, "quorum"),
        ({"train_milliseconds": 0}, "train"),
        ({"steps": 0}, "steps"),
    ],
)
def test_a_charter_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        small_charter(**changes)


def test_founders_ascend_without_repeats():
    fields = {name: getattr(TWO_FOUNDERS, name) for name in Charter.model_fields}
    for founders in (TWO_FOUNDERS.founders[::-1], TWO_FOUNDERS.founders[:1] * 2):
        with pytest.raises(ValidationError, match="founders must ascend"):
            Charter.model_validate(fields | {"founders": founders})


def test_names_of_any_language_are_fine():
    name = "Küstenseeschwalbe 北極燕鷗"
    charter = small_charter(name=name)
    assert Charter.decode(charter.encode()).name == name


def test_the_largest_charter_fits():
    linears = tuple((f"l{'x' * 29}{i:02}", 2**14, 2**14) for i in range(16))
    charter = small_charter(
        name="\U0001f426" * 64,
        base_name="\U0001f426" * 64,
        founders=tuple(key(i).peer for i in range(8)),
        layers=512,
        linears=linears,
        rank=1,
        subspaces=2,
    )
    assert len(charter.encode()) < MAX_CHARTER_BYTES / 4
    signed = sign_charter(charter, tuple(key(i) for i in range(8)))
    assert SignedCharter.decode(signed.encode()) == signed


@pytest.mark.parametrize("scheme", ["fixed", "cycle", "pair"])
def test_delta_elements_count_what_a_peer_trains(scheme):
    adapter: AdapterScheme = small_charter(scheme=scheme, rank=3).adapter
    b, a = 6 + 4, 4 + 10
    assert adapter.delta_elements == 2 * 3 * (b + a if scheme == "pair" else b)
