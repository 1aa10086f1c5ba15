"""Signatures: RFC 8032, and nothing moves to another swarm, round, attempt, kind, author or body."""

import hashlib

import pytest

from sterna_protocol.errors import BadSignature
from sterna_protocol.wire import signing
from tests.support.charters import key

PLACE = {"swarm": b"s" * 32, "round_": 7, "attempt": 2, "kind": 4, "author": b"a" * 32, "body": b"body"}


# RFC 8032 section 7.1, TEST 2.
def test_signs_as_rfc_8032_does():
    signer = signing.SigningKey.from_seed(
        bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    )
    assert signer.peer.hex() == "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    assert signer.sign(b"\x72").hex() == (
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )


def test_the_preimage_is_laid_out_as_drawn():
    assert signing.preimage(**PLACE) == (
        b"sterna/1\0"
        + b"s" * 32
        + b"\0\0\0\x07"
        + b"\0\x02"
        + b"\x04"
        + b"a" * 32
        + hashlib.sha256(b"body").digest()
    )


@pytest.mark.parametrize(
    "change",
    [
        {"swarm": b"S" * 32},
        {"round_": 8},
        {"attempt": 3},
        {"kind": 5},
        {"author": b"A" * 32},
        {"body": b"Body"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_signature_is_worth_nothing_in_another_place(change):
    signer = key(1)
    signature = signer.sign(signing.preimage(**PLACE))
    signing.verify(signer.peer, signature, signing.preimage(**PLACE))
    with pytest.raises(BadSignature):
        signing.verify(signer.peer, signature, signing.preimage(**(PLACE | change)))


@pytest.mark.parametrize(
    ("peer", "signature"),
    [
        (key(2).peer, key(1).sign(b"x")),
        (key(1).peer, bytes(64)),
        (key(1).peer, b""),
        (b"\xff" * 32, key(1).sign(b"x")),
        (b"short", key(1).sign(b"x")),
    ],
)
def test_wrong_signatures_and_keys_are_refused(peer, signature):
    with pytest.raises(BadSignature):
        signing.verify(peer, signature, b"x")


# RFC 8032 section 5.1.7: S must be below the group order, or a second signature follows from each.
def test_the_other_form_of_a_signature_is_refused():
    order = 2**252 + 27742317777372353535851937790883648493
    signature = key(1).sign(b"x")
    raised = (int.from_bytes(signature[32:], "little") + order).to_bytes(32, "little")
    with pytest.raises(BadSignature):
        signing.verify(key(1).peer, signature[:32] + raised, b"x")


def test_a_key_does_not_show_its_secret():
    assert "private" not in repr(key(1)).lower()
