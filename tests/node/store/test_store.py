"""What a node remembers, and what it refuses to contradict."""

from __future__ import annotations

import math
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from sterna.errors import ConfigError, StorageError
from sterna.store import PendingDelta, SeenPeer, Verdict, open_store
from sterna.store.addresses import MAX_ADDRESSES
from sterna_protocol.errors import BadSignature, MalformedMessage
from sterna_protocol.wire.messages import Kind
from tests.node.store import sample

CHARTER = sample.charter()
SIGNED = sample.signed(CHARTER).encode()
SWARM = CHARTER.swarm_id


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_everything_is_there_after_reopening(home: Path) -> None:
    first, second = sample.chain(CHARTER, 2)
    with open_store(home) as store:
        seed = store.key()
        assert store.add_swarm(SIGNED, data="/text", addresses=["/ip4/1.2.3.4/tcp/5"], role="train") == SWARM
        store.put_own(SWARM, 1, 0, Kind.ANNOUNCEMENT, b"hello")
        store.put_certificate(SWARM, 1, first.frame())
        store.put_certificate(SWARM, 2, second.frame())
        store.put_evidence(SWARM, b"proof")
        delta = store.blobs.put(b"delta")
        store.put_pending(SWARM, PendingDelta(3, b"a" * 32, delta, sample.FIGURES))
        store.put_round_log(SWARM, 1, '{"seconds": 3}')
        store.address_book.put(SWARM, SeenPeer(b"p" * 32, ("/ip4/1.2.3.4/tcp/5",), 1000))
        store.put_setting("threads", "2")
    with open_store(home) as store:
        assert store.key() == seed
        [membership] = store.swarms()
        assert membership == store.swarm(SWARM)
        assert (membership.signed_charter, membership.data, membership.role) == (SIGNED, "/text", "train")
        assert membership.addresses == ("/ip4/1.2.3.4/tcp/5",)
        assert store.own_frames(SWARM, 1) == [b"hello"]
        assert store.certificates(SWARM) == [first.frame(), second.frame()]
        assert store.certificates(SWARM, 2, 5) == [second.frame()]
        assert store.certificates(SWARM, 1, 1) == [first.frame()]
        assert store.head(SWARM) == second.frame()
        assert store.evidence(SWARM) == [b"proof"]
        assert store.pending(SWARM) == PendingDelta(3, b"a" * 32, delta, sample.FIGURES)
        assert store.round_log(SWARM) == [(1, '{"seconds": 3}')]
        assert store.address_book.peers(SWARM) == [SeenPeer(b"p" * 32, ("/ip4/1.2.3.4/tcp/5",), 1000)]
        assert store.setting("threads") == "2"
        assert store.setting("unknown") is None


def test_a_second_different_message_of_ours_is_refused(home: Path) -> None:
    with open_store(home) as store:
        store.add_swarm(SIGNED)
        store.put_own(SWARM, 4, 1, Kind.PREVOTE, b"yes")
        store.put_own(SWARM, 4, 1, Kind.PREVOTE, b"yes")
        with pytest.raises(
            StorageError, match="round 4, attempt 1: this node already signed another prevote"
        ):
            store.put_own(SWARM, 4, 1, Kind.PREVOTE, b"no")
        store.put_own(SWARM, 4, 2, Kind.PREVOTE, b"no")
        store.put_own(SWARM, 4, 1, Kind.PRECOMMIT, b"no")
        store.put_own(SWARM, 5, 0, Kind.PREVOTE, b"later")
        assert store.own_frames(SWARM, 4) == [b"yes", b"no", b"no"]
        assert store.own_frames(SWARM, 4, 5) == [b"yes", b"no", b"no", b"later"]


def test_the_journal_itself_keeps_own_messages_certificates_and_evidence(home: Path) -> None:
    with open_store(home) as store:
        store.add_swarm(SIGNED)
        store.put_own(SWARM, 1, 0, 1, b"said")
        store.put_certificate(SWARM, 1, sample.chain(CHARTER, 1)[0].frame())
        store.put_evidence(SWARM, b"proof")
    with sqlite3.connect(home / "state.db") as db:
        for table in ("own_message", "certificate", "evidence"):
            for statement in (f"DELETE FROM {table}", f"UPDATE {table} SET frame = x''"):
                with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                    db.execute(statement)
    db.close()


def test_a_message_of_an_unknown_swarm_is_refused(home: Path) -> None:
    with open_store(home) as store:
        with pytest.raises(StorageError, match="our own message was not saved"):
            store.put_own(SWARM, 1, 0, 1, b"said")
        with pytest.raises(StorageError, match="join it first"):
            store.swarm(SWARM)


def test_a_closed_round_stays_closed(home: Path) -> None:
    first, second = sample.chain(CHARTER, 2)
    other = sample.certificate(CHARTER, 1, CHARTER.swarm_id, adapter=b"o" * 32)
    with open_store(home) as store:
        store.add_swarm(SIGNED)
        store.put_certificate(SWARM, 1, first.frame())
        store.put_certificate(SWARM, 1, first.frame())
        with pytest.raises(StorageError, match="round 1 is closed"):
            store.put_certificate(SWARM, 1, other.frame())
        store.put_certificate(SWARM, 2, second.frame())
        assert store.certificates(SWARM) == [first.frame(), second.frame()]


def test_the_chain_takes_only_the_next_round(home: Path) -> None:
    first, _, third = sample.chain(CHARTER, 3)
    stranger = sample.certificate(CHARTER, 2, b"x" * 32, adapter=b"o" * 32)
    with open_store(home) as store:
        store.add_swarm(SIGNED)
        store.put_certificate(SWARM, 1, first.frame())
        for certificate in (third, stranger):
            with pytest.raises(StorageError, match="does not follow ours of round 1"):
                store.put_certificate(SWARM, certificate.round_, certificate.frame())
        with pytest.raises(StorageError, match="not the certificate of"):
            store.put_certificate(SWARM, 2, first.frame())
        with pytest.raises(MalformedMessage):
            store.put_certificate(SWARM, 2, b"\6junk")


def test_a_chain_may_start_at_an_anchor(home: Path) -> None:
    *_, third = sample.chain(CHARTER, 3)
    with open_store(home) as store:
        store.add_swarm(SIGNED)
        store.put_certificate(SWARM, 3, third.frame())
        assert store.head(SWARM) == third.frame()


def test_a_charter_that_its_founders_did_not_sign_is_not_kept(home: Path) -> None:
    forged = sample.signed(CHARTER).model_copy(update={"charter": sample.charter(name="other")})
    with open_store(home) as store:
        with pytest.raises(BadSignature):
            store.add_swarm(forged.encode())
        assert store.swarms() == []


def test_joining_again_changes_how_we_take_part_and_forgets_nothing(home: Path) -> None:
    with open_store(home) as store:
        store.add_swarm(SIGNED, data="/a")
        store.put_own(SWARM, 1, 0, 1, b"said")
        store.add_swarm(SIGNED, data="/b", role="follow")
        [membership] = store.swarms()
        assert (membership.data, membership.role) == ("/b", "follow")
        assert store.own_frames(SWARM, 1) == [b"said"]


def test_a_pending_delta_needs_its_blob(home: Path) -> None:
    with open_store(home) as store:
        store.add_swarm(SIGNED)
        with pytest.raises(StorageError, match="put it there first"):
            store.put_pending(SWARM, PendingDelta(1, b"a" * 32, b"d" * 32, sample.FIGURES))
        delta = store.blobs.put(b"delta")
        store.put_pending(SWARM, PendingDelta(1, b"a" * 32, delta, sample.FIGURES))
        store.blobs.path(delta).unlink()
        assert store.pending(SWARM) is None


def test_a_full_address_book_loses_the_peers_not_seen_for_longest(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sterna.store.addresses.MAX_PEERS", 5)
    with open_store(home) as store:
        store.add_swarm(SIGNED)
        many = tuple(f"/ip4/10.0.0.{n}/tcp/1" for n in range(2 * MAX_ADDRESSES))
        for number in range(8):
            store.address_book.put(SWARM, SeenPeer(number.to_bytes(32, "big"), many, number))
        peers = store.address_book.peers(SWARM)
        assert [peer.seen for peer in peers] == [7, 6, 5, 4, 3]
        assert peers[0].addresses == many[:MAX_ADDRESSES]


def test_collecting_keeps_what_was_promised(home: Path) -> None:
    with open_store(home) as store:
        store.add_swarm(SIGNED)
        names = ("older", "old", "kept", "oldest", "before", "adapter", "own", "open", "x")
        blobs = {name: store.blobs.put(name.encode()) for name in names}
        previous = CHARTER.swarm_id
        slates = (("older", "oldest"), ("old", "before"), ("kept", "adapter"), ("kept", "adapter"))
        for round_, (delta, adapter) in enumerate(slates, start=1):
            certificate = sample.certificate(
                CHARTER, round_, previous, adapter=blobs[adapter], deltas=(blobs[delta],)
            )
            store.put_certificate(SWARM, round_, certificate.frame())
            previous = certificate.id
        store.put_pending(SWARM, PendingDelta(5, blobs["adapter"], blobs["own"], sample.FIGURES))
        # retention_rounds is 2: slates of rounds 1 and 2 have been served long enough, but round 3 is merged
        # again from what round 2 ended with.
        gone = ("older", "old", "oldest", "x")
        assert store.collect({blobs["open"]}) == sum(map(len, gone))
        assert set(store.blobs.digests()) == {blobs[name] for name in names if name not in gone}


def test_one_home_serves_one_process(home: Path) -> None:
    with open_store(home) as store:
        store.put_setting("a", "1")
        with pytest.raises(StorageError, match=r"is in use by process \d+; stop it"):
            open_store(home)
    open_store(home).close()


def test_another_process_is_locked_out_and_named(home: Path) -> None:
    program = (
        f"from pathlib import Path; from sterna.store import open_store; open_store(Path({str(home)!r}))"
    )
    with open_store(home):
        outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "is in use by process" in outcome.stderr


def test_a_reader_looks_on_while_the_node_writes(home: Path) -> None:
    with open_store(home) as store:
        seed = store.key()
        store.add_swarm(SIGNED)
        with open_store(home, read_only=True) as reader:
            store.put_round_log(SWARM, 1, "{}")
            assert reader.round_log(SWARM) == [(1, "{}")]
            assert reader.key() == seed
            for write in (
                lambda: reader.put_setting("a", "1"),
                lambda: reader.blobs.put(b"x"),
                lambda: reader.collect(),
            ):
                with pytest.raises(StorageError, match="opened for reading only"):
                    write()


def test_a_reader_of_a_home_without_a_node_is_told_to_make_one(home: Path) -> None:
    with pytest.raises(ConfigError, match="sterna init"):
        open_store(home, read_only=True)
    assert not home.exists()


def test_the_key_never_enters_the_journal(home: Path) -> None:
    with open_store(home) as store:
        seed = store.key()
        store.add_swarm(SIGNED)
        store.put_own(SWARM, 1, 0, 1, b"said")
    written = b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file() and path.name != "key")
    assert seed not in written
    assert seed.hex().encode() not in written


def test_what_is_served_and_what_was_judged_last_are_kept_together(home: Path) -> None:
    with open_store(home) as store:
        store.add_swarm(sample.signed(CHARTER).encode())
        assert store.verdicts(SWARM) is None
        blobs = [store.blobs.put(blob) for blob in (b"served", b"held back", b"of no use")]
        served, newest = Verdict(1, blobs[0], 3.25), Verdict(2, blobs[1], math.nan)
        store.put_verdicts(SWARM, served=Verdict(0, blobs[2], 4.0), newest=served)
        store.put_verdicts(SWARM, served=served, newest=newest)
    with open_store(home) as store:
        kept = store.verdicts(SWARM)
        assert kept is not None
        assert kept[0] == served
        assert kept[1].adapter == newest.adapter
        assert math.isnan(kept[1].loss)
        store.collect()
        assert [store.blobs.has(blob) for blob in blobs] == [True, True, False]
