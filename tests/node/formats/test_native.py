"""Sterna's own file: read back to the bit, and refused whatever is twisted in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from sterna.errors import ConfigError, NodeError, VerificationError
from sterna.formats.native import read_native, write_native
from sterna.formats.tensors import encode_tensors
from sterna_protocol.merge.adapter import Adapter
from sterna_protocol.wire.messages import CommitSignature
from sterna_protocol.wire.signing import SigningKey
from tests.node.store import sample

CHARTER = sample.charter(layers=1, linears=sample.LLAMA_LINEARS[1:2])
SIGNED = sample.signed(CHARTER)
ADAPTER = sample.random_adapter(CHARTER)
CHAIN = sample.chain(CHARTER, 3, last_adapter=ADAPTER)
LAST = CHAIN[-1]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "adapter.sterna"


def write(path: Path) -> None:
    write_native(path, charter=SIGNED, adapter=ADAPTER, certificate=LAST, history=CHAIN[:-1])


def forge(path: Path, **changes: np.ndarray) -> None:
    """Rewrite the file with other tensors, as somebody without our writer would."""
    write(path)
    tensors = {**load_file(path), **changes}
    path.write_bytes(encode_tensors(tensors, {"format": "sterna-adapter/1"}))


def test_what_is_written_is_read_and_proven(path: Path) -> None:
    write(path)
    read = read_native(path, swarm=CHARTER.swarm_id)
    assert read.proven
    assert (read.charter, read.certificate) == (CHARTER, LAST)
    np.testing.assert_array_equal(read.adapter.state, ADAPTER.state)
    before = path.read_bytes()
    write(path)
    assert path.read_bytes() == before


def test_the_state_can_be_read_by_any_safetensors_reader(path: Path) -> None:
    write(path)
    np.testing.assert_array_equal(load_file(path)["state"], ADAPTER.state)


def test_without_the_history_the_signatures_count_but_prove_less(path: Path) -> None:
    write_native(path, charter=SIGNED, adapter=ADAPTER, certificate=LAST)
    assert not read_native(path).proven


def test_a_wrong_file_is_not_written(path: Path) -> None:
    other = sample.random_adapter(CHARTER, seed=2)
    with pytest.raises(VerificationError, match="names the adapter"):
        write_native(path, charter=SIGNED, adapter=other, certificate=LAST)
    with pytest.raises(VerificationError):
        write_native(path, charter=SIGNED, adapter=ADAPTER, certificate=LAST, history=CHAIN[:1])
    assert not path.exists()


def test_one_changed_number_is_noticed(path: Path) -> None:
    state = ADAPTER.state.copy()
    state[1, 2] += 1
    forge(path, state=state)
    with pytest.raises(VerificationError, match="names the adapter"):
        read_native(path)


def test_another_swarm_is_noticed(path: Path) -> None:
    write(path)
    with pytest.raises(VerificationError, match="is of the swarm"):
        read_native(path, swarm=b"x" * 32)


def test_a_charter_that_its_founder_did_not_sign_is_noticed(path: Path) -> None:
    other = sample.charter(layers=1, linears=sample.LLAMA_LINEARS[1:2], name="other")
    forged = SIGNED.model_copy(update={"charter": other})
    forge(path, charter=np.frombuffer(forged.encode(), np.uint8))
    with pytest.raises(VerificationError, match="does not verify"):
        read_native(path)


def test_a_certificate_by_somebody_else_is_noticed(path: Path) -> None:
    stranger = SigningKey.from_seed(b"x" * 32)
    for signature in (
        CommitSignature(member=stranger.peer, signature=LAST.signatures[0].signature),
        CommitSignature(member=sample.KEY.peer, signature=bytes(64)),
    ):
        forged = LAST.model_copy(update={"signatures": (signature,)})
        frame = forged.frame()
        forge(path, certificates=np.frombuffer(len(frame).to_bytes(4, "big") + frame, np.uint8))
        with pytest.raises(VerificationError):
            read_native(path)


@pytest.mark.parametrize("frames", [b"", b"\0", b"\0\0\0\5\6", b"\0\0\0\0", b"\xff\xff\xff\xff\6"])
def test_a_broken_list_of_certificates_is_refused(path: Path, frames: bytes) -> None:
    forge(path, certificates=np.frombuffer(frames, np.uint8))
    with pytest.raises(NodeError):
        read_native(path)


def test_a_state_of_another_shape_is_refused(path: Path) -> None:
    for state in (ADAPTER.state[:1], ADAPTER.state[:, 1:], np.zeros((0, 0), np.int32)):
        forge(path, state=np.ascontiguousarray(state))
        with pytest.raises(VerificationError, match="adapter state is"):
            read_native(path)


def test_a_state_out_of_range_is_refused(path: Path) -> None:
    forge(path, state=np.full_like(ADAPTER.state, -(2**31)))
    with pytest.raises(VerificationError, match="is -2"):
        read_native(path)


def test_another_kind_of_file_is_refused(path: Path) -> None:
    path.write_bytes(encode_tensors({"state": Adapter(ADAPTER.state).state}, {}))
    with pytest.raises(ConfigError, match="missing tensor 'certificates'"):
        read_native(path)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_flipped_byte_passes_unnoticed(path: Path, data: st.DataObject) -> None:
    write(path)
    mutated = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(mutated) - 1))
    mutated[position] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(mutated)
    try:
        read = read_native(path)
    except NodeError:
        return
    # What is not proven by a signature is only the metadata and the padding of the header.
    assert (read.charter, read.certificate) == (CHARTER, LAST)
    np.testing.assert_array_equal(read.adapter.state, ADAPTER.state)
