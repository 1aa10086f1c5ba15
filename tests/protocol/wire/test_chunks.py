"""Blobs: the tree equals RFC 6962, and a leaf list refuses whatever is not its blob."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna_protocol.errors import LocalProtocolError, MalformedMessage
from sterna_protocol.wire import chunks
from sterna_protocol.wire.chunks import CHUNK_BYTES, LeafList
from sterna_protocol.wire.limits import MAX_BLOB_BYTES


def rfc6962_root(hashes: list[bytes]) -> bytes:
    """The tree as RFC 6962 section 2.1 defines it, by recursion."""
    if len(hashes) == 1:
        return hashes[0]
    split = 1
    while split * 2 < len(hashes):
        split *= 2
    left, right = rfc6962_root(hashes[:split]), rfc6962_root(hashes[split:])
    return hashlib.sha256(b"\1" + left + right).digest()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 8, 9, 31, 33, 100])
def test_the_digest_is_over_the_tree_of_rfc_6962(count):
    hashes = [hashlib.sha256(bytes([i])).digest() for i in range(count)]
    size = (count - 1) * CHUNK_BYTES + 1
    expected = hashlib.sha256(b"sterna/blob/1" + size.to_bytes(8, "big") + rfc6962_root(hashes)).digest()
    assert chunks.digest_of(hashes, size) == expected


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
def test_a_file_and_its_bytes_have_one_digest(size):
    data = bytes(i * 31 % 251 for i in range(1000)) * (size // 1000 + 1)
    data = data[:size]
    expected = chunks.blob_digest(data)
    assert chunks.file_digest(lambda offset, length: data[offset : offset + length], size) == expected
    assert LeafList.of(data).digest == expected
    assert len(chunks.leaves(memoryview(data))) == chunks.chunk_count(size)
    assert sum(chunks.chunk_length(size, i) for i in range(chunks.chunk_count(size))) == size


def test_the_empty_blob_is_one_empty_chunk():
    assert chunks.leaves(b"") == [hashlib.sha256(b"\0").digest()]
    assert chunks.chunk_length(0, 0) == 0


def test_size_is_part_of_the_digest():
    hashes = [b"h" * 32]
    assert chunks.digest_of(hashes, 5) != chunks.digest_of(hashes, 6)


def test_a_file_that_shrinks_while_it_is_read_is_an_error():
    with pytest.raises(LocalProtocolError, match="the file changed"):
        chunks.file_digest(lambda offset, length: b"short", 10)


def test_a_number_of_leaves_that_no_such_blob_has_is_an_error():
    with pytest.raises(LocalProtocolError, match="2 leaves, a blob of 5 bytes has 1"):
        chunks.digest_of([b"h" * 32] * 2, 5)


@pytest.mark.parametrize("index", [-1, 2])
def test_a_chunk_outside_the_blob_is_an_error(index):
    with pytest.raises(LocalProtocolError, match="has 2"):
        chunks.chunk_length(CHUNK_BYTES + 1, index)


class TestLeafList:
    data = bytes(range(256)) * 1024 + b"tail"

    def test_comes_back_from_its_bytes(self):
        held = LeafList.of(self.data)
        assert LeafList.decode(held.encode(), digest=held.digest, size=held.size) == held

    def test_accepts_its_chunks_and_no_others(self):
        held = LeafList.of(self.data)
        held.check(0, self.data[:CHUNK_BYTES])
        held.check(1, b"tail")
        with pytest.raises(MalformedMessage, match=r"chunk 1 of .* has another hash"):
            held.check(1, b"tale")
        with pytest.raises(MalformedMessage, match="chunk 1 of 5 bytes, expected 4"):
            held.check(1, b"tail!")
        with pytest.raises(LocalProtocolError):
            held.check(2, b"")

    @pytest.mark.parametrize(
        ("size_change", "data_change", "message"),
        [
            (1, b"", "does not give the digest"),
            (CHUNK_BYTES, b"", "leaf list of 64 bytes, .* has 96"),
            (0, b"x", "leaf list of 65 bytes"),
        ],
    )
    def test_refuses_what_does_not_give_the_digest(self, size_change, data_change, message):
        held = LeafList.of(self.data)
        with pytest.raises(MalformedMessage, match=message):
            LeafList.decode(held.encode() + data_change, digest=held.digest, size=held.size + size_change)

    @pytest.mark.parametrize("size", [-1, MAX_BLOB_BYTES + 1])
    def test_refuses_sizes_no_blob_has_before_it_looks_at_the_hashes(self, size):
        with pytest.raises(MalformedMessage, match="the limit is"):
            LeafList.decode(b"", digest=b"d" * 32, size=size)

    @given(st.binary(max_size=200), st.integers(0, 3 * CHUNK_BYTES))
    def test_any_bytes_are_refused(self, data, size):
        with pytest.raises(MalformedMessage):
            LeafList.decode(data, digest=b"d" * 32, size=size)
