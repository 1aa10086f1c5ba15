"""The committed vectors are what this code makes, and what it reads."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

from sterna_protocol.merge.adapter import decode_adapter, encode_adapter, genesis_adapter
from sterna_protocol.merge.codec import decode_delta
from sterna_protocol.merge.rules import merge
from sterna_protocol.round.certificate import verify_signatures
from sterna_protocol.round.heads import decode_request, decode_response, encode_sync
from sterna_protocol.round.reform import decode_reform
from sterna_protocol.swarm.charter import decode_signed_charter
from sterna_protocol.swarm.introduction import answer_charter_request
from sterna_protocol.swarm.invitation import decode_invitation
from sterna_protocol.swarm.ticket import decode_ticket
from sterna_protocol.wire import signing
from sterna_protocol.wire.acts import Act
from sterna_protocol.wire.chunks import blob_digest
from sterna_protocol.wire.messages import Certificate, Decision, Evidence, Signed, decode_body, decode_frame
from tests.vectors import generate

# What NumPy would choose kernels by on this machine; the names differ between its versions.
CPU_FEATURES = [feature for feature in __cpu_dispatch__ if __cpu_features__.get(feature)]


def load(name):
    return json.loads((generate.FOLDER / name).read_text(encoding="ascii"))


def test_golden_vectors_are_what_this_code_makes():
    made = generate.vectors()
    assert {path.name for path in generate.FOLDER.glob("*.json")} == set(made)
    for name, content in made.items():
        assert load(name) == content, name


def test_golden_acts_are_read_and_verified():
    swarm = generate.charter().swarm_id
    *acts, invitation, carried, named = load("acts.json")
    for case in acts:
        act = decode_frame(bytes.fromhex(case["frame"]))
        assert isinstance(act, Act)
        act.verify(swarm)
        assert act.preimage(swarm).hex() == case["preimage"]
        assert act.id.hex() == case["id"]
        assert generate._fields(act.content) == case["body_fields"]
    read = decode_invitation(bytes.fromhex(invitation["encoded"]), swarm)
    assert read.invites[0].preimage(swarm).hex() == invitation["invite_preimage"]
    assert Decision.decode(bytes.fromhex(carried["decision"])).id.hex() == carried["id"]
    reform = decode_reform(named["text"])
    assert reform.frame().hex() == named["frame"]
    verify_signatures(reform)


def test_golden_frames_are_read_and_verified():
    for case in load("frames.json"):
        message = decode_frame(bytes.fromhex(case["frame"]))
        assert message.frame().hex() == case["frame"]
        if isinstance(message, Signed):
            signing.verify(message.author, message.signature, bytes.fromhex(case["preimage"]))
            assert message.id.hex() == case["id"]
            assert generate._fields(decode_body(message)) == case["body_fields"]
        elif isinstance(message, Evidence):
            message.verify()
        else:
            assert isinstance(message, Certificate)
            assert message.id.hex() == case["id"]


def test_golden_sync_records_are_read():
    signed = decode_signed_charter(
        bytes.fromhex(load("charter.json")["signed_charter"]),
        bytes.fromhex(load("charter.json")["swarm_id"]),
    )
    for case in load("sync.json"):
        data = bytes.fromhex(case["bytes"])
        if case["record"] == "CharterRequest":
            assert answer_charter_request(data, signed) == signed.encode()
            continue
        record = (decode_request if case["side"] == "request" else decode_response)(data)
        assert type(record).__name__ == case["record"]
        assert generate._fields(record) == case["fields"]
        assert encode_sync(record) == data


def test_golden_charter_is_read_and_verified():
    case = load("charter.json")
    signed = decode_signed_charter(bytes.fromhex(case["signed_charter"]), bytes.fromhex(case["swarm_id"]))
    assert generate._fields(signed.charter) == case["fields"]


def test_golden_tickets_are_read():
    for case in load("ticket.json"):
        ticket = decode_ticket(case["ticket"])
        assert list(ticket.addresses) == case["addresses"]
        assert (ticket.swarm.hex(), ticket.anchor.hex()) == (case["swarm"], case["anchor"])


def test_golden_deltas_and_adapters_are_read():
    for case in load("deltas.json"):
        charter = generate.charter(codec=case["codec"], rank=case["rank"])
        delta = decode_delta(
            charter, author=bytes.fromhex(case["author"]), round_=7, data=bytes.fromhex(case["blob"])
        )
        assert delta.codes.tolist() == case["codes"]
        assert delta.exponents.tolist() == case["exponents"]
    for case in load("adapters.json"):
        charter = generate.charter(scheme=case["scheme"], subspaces=len(case["state"]))
        assert decode_adapter(charter, bytes.fromhex(case["blob"])).state.tolist() == case["state"]


def large_merge_digests() -> list[str]:
    """One digest for each rule over 24,000 elements, more than one slice."""
    digests = []
    for rule in generate.RULES:
        charter = generate.charter(codec="int8", rule=rule, rank=256, subspaces=2)
        charter = charter.model_copy(
            update={
                "adapter": charter.adapter.model_copy(
                    update={"linears": (charter.adapter.linears[0].model_copy(update={"out_features": 47}),)}
                )
            }
        )
        merged = merge(charter, genesis_adapter(charter), generate.slate(charter, 9, 7), 7)
        assert np.abs(merged.state).max() > 0
        digests.append(blob_digest(encode_adapter(charter, merged)).hex())
    return digests


# Environment variables stand for other machines: kernels of other CPUs, other threads, another hash seed.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("machine", "keeps"),
    [
        ({"OPENBLAS_CORETYPE": "Prescott"}, ()),
        ({"OPENBLAS_CORETYPE": "Haswell"}, ("X86_V3", "AVX2", "FMA3")),
        (
            {"OPENBLAS_CORETYPE": "SkylakeX", "OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "7"},
            tuple(CPU_FEATURES),
        ),
    ],
    ids=["sse", "avx2", "avx512"],
)
def test_golden_merges_do_not_depend_on_the_cpu(machine, keeps):
    disabled = " ".join(feature for feature in CPU_FEATURES if feature not in keeps)
    program = "from tests.vectors.test_golden import large_merge_digests as d; print(*d())"
    other = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env=os.environ | machine | {"NPY_DISABLE_CPU_FEATURES": disabled},
        cwd=generate.FOLDER.parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.split() == large_merge_digests()
