"""Writes the byte vectors: run it only when the specification changes, and say so in the commit.

``python -m tests.vectors.generate`` rewrites the JSON files beside this one. Values come from fixed seeds and
SHAKE-256, so that another implementation can make the same inputs; bytes are hex.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from sterna_protocol.merge.adapter import Adapter, encode_adapter, genesis_adapter
from sterna_protocol.merge.codec import Codec, Delta, block_elements, encode_delta
from sterna_protocol.merge.rules import merge
from sterna_protocol.merge.scheme import a_signs, delta_size
from sterna_protocol.round.evidence import Place, proof_id
from sterna_protocol.round.heads import (
    CertificatesRequest,
    Frames,
    FramesRequest,
    Heads,
    Inventory,
    InventoryRequest,
    RequestRecord,
    ResponseRecord,
    encode_sync,
)
from sterna_protocol.round.reform import encode_reform, sign_reform
from sterna_protocol.swarm.charter import (
    AdapterScheme,
    AdmissionPolicy,
    Charter,
    Limits,
    Linear,
    MergeRule,
    Recipe,
    Timing,
    sign_charter,
)
from sterna_protocol.swarm.committee import proposers
from sterna_protocol.swarm.introduction import CharterRequest, encode_charter_request
from sterna_protocol.swarm.invitation import invite_with
from sterna_protocol.swarm.roll import OPEN
from sterna_protocol.swarm.ticket import Ticket, encode_ticket
from sterna_protocol.wire.acts import Departure, Revocation, Rotation, sign_act
from sterna_protocol.wire.chunks import CHUNK_BYTES, blob_digest, leaves
from sterna_protocol.wire.encoding import Record
from sterna_protocol.wire.ids import peer_name, sha256
from sterna_protocol.wire.messages import (
    Announcement,
    Attestation,
    Body,
    Certificate,
    Commitment,
    CommitSignature,
    Decision,
    Figures,
    Kind,
    Precommit,
    Prevote,
    Proposal,
    SlateEntry,
    prove,
    sign,
)
from sterna_protocol.wire.signing import SigningKey

FOLDER = Path(__file__).parent
CODECS: tuple[Codec, ...] = ("int8", "int4", "ternary", "top2")
RULES = ("mean", "clip+mean", "trimmed", "median", "nnm+trimmed", "clip+filter")
LIMITS = {"int8": 127, "int4": 7, "ternary": 1, "top2": 3}
KEYS = sorted((SigningKey.from_seed(bytes((number,)) * 32) for number in (1, 2, 3)), key=lambda key: key.peer)
KEY_IDS = tuple(key.peer for key in KEYS)


def vectors() -> dict[str, Any]:
    """File name -> content of each vector file."""
    return {
        "charter.json": _charters(),
        "frames.json": _frames(),
        "sync.json": _sync(),
        "hashes.json": _hashes(),
        "acts.json": _acts(),
        "ticket.json": _tickets(),
        "blobs.json": _blobs(),
        "signs.json": _signs(),
        "deltas.json": _deltas(),
        "adapters.json": _adapters(),
        "merges.json": _merges(),
        "branches.json": _branches(),
    }


def charter(**changes: Any) -> Charter:
    """The charter of all vectors; ``changes`` are to codec, rule, scheme, subspaces and rank."""
    return Charter(
        version=1,
        name="Sterna paradisaea",
        nonce=bytes(range(16)),
        founders=tuple(key.peer for key in KEYS[:2]),
        base_name="vector",
        base=b"\x01" * 32,
        tokenizer=b"\x02" * 32,
        adapter=AdapterScheme(
            scheme=changes.get("scheme", "cycle"),
            rank=changes.get("rank", 2),
            subspaces=changes.get("subspaces", 3),
            scale=2,
            layers=2,
            linears=(
                Linear(name="q", out_features=6, in_features=4),
                Linear(name="down", out_features=4, in_features=10),
            ),
            seed=b"\x03" * 32,
        ),
        codec=changes.get("codec", "ternary"),
        merge=MergeRule(rule=changes.get("rule", "mean"), trim_percent=20),
        recipe=Recipe(
            steps=40,
            sequences_per_step=4,
            tokens_per_sequence=256,
            learning_rate_micros=16_000,
            warmup_steps=4,
        ),
        timing=Timing(train=600_000, attest=60_000, vote=10_000),
        limits=Limits(min_deltas=2, max_deltas=64, max_staleness=2, retention_rounds=20),
        quorum="byzantine",
        admission=AdmissionPolicy(mode="invite", max_depth=3, quota=64, open_percent=20, aged_rounds=5),
    )


def stream(label: str, length: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """SHAKE-256 of the label in ASCII: ``length`` bytes."""
    return np.frombuffer(hashlib.shake_256(label.encode("ascii")).digest(length), np.uint8)


def delta(charter: Charter, label: str) -> Delta:
    """The delta of a label: code = byte mod (2 limit + 1) - limit, exponent = -(byte mod 25).

    top2: element i of a block is kept where i mod 32 = 0, with the code -3, -2, 2 or 3 for byte mod 4.
    """
    size, limit = delta_size(charter.adapter), LIMITS[charter.codec]
    codes = stream(f"codes {label}", size)
    if charter.codec == "top2":
        codes = np.where(np.arange(size) % 1024 % 32 == 0, np.array([-3, -2, 2, 3])[codes % 4], 0)
    else:
        codes = (codes % (2 * limit + 1)).astype(np.int16) - limit
    count = -(-size // block_elements(charter.codec))
    exponents = -(stream(f"exponents {label}", count) % 25).astype(np.int16)
    return Delta(codes.astype(np.int8), exponents.astype(np.int8), charter.codec)


def slate(charter: Charter, count: int, round_: int) -> list[tuple[SlateEntry, Delta]]:
    """Delta i is late by i mod 3 rounds."""
    return [
        (
            SlateEntry(
                author=number.to_bytes(32, "big"),
                announcement=bytes(32),
                delta=bytes(32),
                trained_round=round_ - number % 3,
            ),
            delta(charter, f"{charter.merge.rule} {number}"),
        )
        for number in range(count)
    ]


def main() -> None:
    for name, content in vectors().items():
        # One case a line, so that a change shows as the lines of its cases.
        if isinstance(content, dict):
            lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items()]
            text = "{\n" + ",\n".join(lines) + "\n}\n"
        else:
            text = "[\n" + ",\n".join(json.dumps(case) for case in content) + "\n]\n"
        (FOLDER / name).write_text(text, encoding="ascii")


def _charters() -> dict[str, Any]:
    signed = sign_charter(charter(), tuple(KEYS))
    return {
        "founder_seeds": [(bytes((number,)) * 32).hex() for number in (1, 2, 3)],
        "founders": [key.peer.hex() for key in KEYS[:2]],
        "founder_names": [peer_name(key.peer) for key in KEYS[:2]],
        "fields": _fields(signed.charter),
        "charter": signed.charter.encode().hex(),
        "swarm_id": signed.charter.swarm_id.hex(),
        "signed_charter": signed.encode().hex(),
    }


def _frames() -> list[dict[str, Any]]:
    swarm = charter().swarm_id
    entries = tuple(
        SlateEntry(author=key.peer, announcement=b"\x04" * 32, delta=b"\x05" * 32, trained_round=7)
        for key in KEYS[:2]
    )
    decision = Decision(
        round_=7,
        previous=b"\x06" * 32,
        entries=entries,
        attesters=tuple(key.peer for key in KEYS),
        adapter=b"\x07" * 32,
    )
    void = Decision(round_=7, previous=b"\x06" * 32, entries=(), attesters=(), adapter=b"\x08" * 32)
    figures = Figures(
        loss_before_micronats=6_562_000,
        loss_after_micronats=5_384_000,
        steps=40,
        tokens=40_960,
        milliseconds=61_000,
    )
    bodies: list[tuple[str, Body]] = [
        (
            "announcement",
            Announcement(delta=b"\x05" * 32, trained_round=6, base_adapter=b"\x08" * 32, figures=figures),
        ),
        ("commitment", Commitment(announcement=b"\x04" * 32)),
        ("attestation", Attestation(accepted=(b"\x04" * 32, b"\x09" * 32))),
        ("proposal", Proposal(decision=decision, valid_attempt=0)),
        ("proposal of a void round", Proposal(decision=void, valid_attempt=2)),
        ("prevote", Prevote(choice=decision.id)),
        ("prevote for no decision", Prevote(choice=b"")),
        ("precommit", Precommit(choice=decision.id)),
    ]
    cases = []
    for name, body in bodies:
        message = sign(KEYS[0], swarm=swarm, round_=7, attempt=1, body=body)
        cases.append(
            {
                "name": name,
                "kind": message.kind,
                "author": message.author.hex(),
                "body_fields": _fields(body),
                "preimage": message.preimage().hex(),
                "id": message.id.hex(),
                "frame": message.frame().hex(),
            }
        )
    precommits = [
        sign(key, swarm=swarm, round_=7, attempt=1, body=Precommit(choice=decision.id)) for key in KEYS
    ]
    certificate = Certificate(
        swarm=swarm,
        attempt=1,
        decision=decision,
        signatures=tuple(CommitSignature(member=p.author, signature=p.signature) for p in precommits),
    )
    evidence = prove(
        *(sign(KEYS[0], swarm=swarm, round_=7, attempt=1, body=Prevote(choice=c)) for c in (decision.id, b""))
    )
    for name, kind, record in (
        ("certificate", Kind.CERTIFICATE, certificate),
        ("evidence", Kind.EVIDENCE, evidence),
    ):
        cases.append(
            {"name": name, "kind": int(kind), "body_fields": _fields(record), "frame": record.frame().hex()}
        )
    cases[-2]["id"] = certificate.id.hex()
    return cases


def _sync() -> list[dict[str, Any]]:
    swarm = charter().swarm_id
    ids = (b"\x04" * 32, b"\x09" * 32)
    frame = sign(KEYS[0], swarm=swarm, round_=7, attempt=0, body=Commitment(announcement=ids[0])).frame()
    heads = Heads(swarm=swarm, round_=7, head=b"\x06" * 32, messages=b"\x0b" * 32, trains=True)
    asked: tuple[RequestRecord, ...] = (
        heads,
        InventoryRequest(swarm=swarm, round_=7),
        FramesRequest(swarm=swarm, round_=7, ids=ids),
        CertificatesRequest(swarm=swarm, first=6, count=256),
    )
    answered: tuple[ResponseRecord, ...] = (heads, Inventory(round_=7, ids=ids), Frames(frames=(frame,)))
    cases = [
        {
            "side": side,
            "record": type(record).__name__,
            "fields": _fields(record),
            "bytes": encode_sync(record).hex(),
        }
        for side, records in (("request", asked), ("response", answered))
        for record in records
    ]
    cases.append(
        {
            "side": "request",
            "record": CharterRequest.__name__,
            "fields": _fields(CharterRequest(swarm=swarm)),
            "bytes": encode_charter_request(swarm).hex(),
        }
    )
    return cases


def _hashes() -> dict[str, Any]:
    """What nodes must derive alike: who proposes, what a proven place and a set of messages are called."""
    members = tuple(sorted(stream(f"member {number}", 32).tobytes() for number in range(5)))
    previous = b"\x06" * 32
    place = Place(round_=7, attempt=1, kind=Kind.PREVOTE, author=members[0])
    ids = tuple(sorted((place.conflict_id, proof_id(members[1]), b"\x04" * 32)))
    return {
        "members": _fields(members),
        "previous": previous.hex(),
        "proposers": _fields(proposers(members, previous)),
        "conflict": {"place": _fields(tuple(place)), "id": place.conflict_id.hex()},
        "proof": {"author": members[1].hex(), "id": proof_id(members[1]).hex()},
        "set": {"ids": _fields(ids), "digest": sha256(b"sterna/set/1", *ids).hex()},
    }


def _acts() -> list[dict[str, Any]]:
    swarm = charter().swarm_id
    inviter, joiner, other = KEYS
    invitation = invite_with(inviter, b"\x0b" * 32, swarm=swarm, uses=3, last_round=70, may_invite=2)
    acts = {
        "admission": invitation.admit(joiner, swarm),
        "revocation": sign_act(Revocation(revoker=inviter.peer, peer=joiner.peer), inviter, swarm=swarm),
        "departure": sign_act(Departure(peer=joiner.peer, since=7), joiner, swarm=swarm),
        "rotation": sign_act(Rotation(old=joiner.peer, new=other.peer), joiner, other, swarm=swarm),
    }
    cases = [
        {
            "name": name,
            "kind": act.kind,
            "body_fields": _fields(act.content),
            "preimage": act.preimage(swarm).hex(),
            "id": act.id.hex(),
            "frame": act.frame().hex(),
        }
        for name, act in acts.items()
    ]
    invite = {
        "name": "invitation",
        "seed": invitation.seed.hex(),
        "invite_preimage": invitation.invites[0].preimage(swarm).hex(),
        "fields": _fields(invitation),
        "encoded": invitation.encode().hex(),
    }
    decision = Decision(
        round_=8,
        previous=b"\x06" * 32,
        entries=(),
        attesters=tuple(key.peer for key in KEYS),
        adapter=b"\x08" * 32,
        changes=(acts["admission"],),
    )
    reform = sign_reform(
        charter(), inviter, decision.model_copy(update={"attesters": (), "changes": (), "committee": KEY_IDS})
    )
    named = {
        "name": "reform",
        "decision": reform.decision.encode().hex(),
        "id": reform.id.hex(),
        "frame": reform.frame().hex(),
        "text": encode_reform(reform),
    }
    carried = {"name": "decision", "decision": decision.encode().hex(), "id": decision.id.hex()}
    return [*cases, invite, carried, named]


def _tickets() -> list[dict[str, Any]]:
    name = peer_name(KEYS[0].peer)
    swarm = charter().swarm_id
    cases = {
        "new swarm": Ticket(swarm, (f"/ip4/192.0.2.7/tcp/4001/p2p/{name}",)),
        "every form of address, an anchor and an invite": Ticket(
            swarm,
            (
                f"/ip4/192.0.2.7/tcp/4001/p2p/{name}",
                f"/ip6/2001:db8::7/tcp/4001/p2p/{name}",
                f"/dns/sterna.example/tcp/443/p2p/{name}",
                f"/ip4/192.0.2.7/udp/4001/quic-v1/p2p/{name}",
            ),
            9,
            b"\x0a" * 32,
            b"invite",
        ),
    }
    return [
        {
            "name": case,
            "swarm": ticket.swarm.hex(),
            "addresses": list(ticket.addresses),
            "anchor_round": ticket.anchor_round,
            "anchor": ticket.anchor.hex(),
            "invite": ticket.invite.hex(),
            "ticket": encode_ticket(ticket),
        }
        for case, ticket in cases.items()
    ]


def _blobs() -> list[dict[str, Any]]:
    cases = []
    for size in (0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES, 5 * CHUNK_BYTES + 17):
        data = stream(f"blob {size}", size).tobytes()
        cases.append(
            {"size": size, "leaves": [leaf.hex() for leaf in leaves(data)], "digest": blob_digest(data).hex()}
        )
    return cases


def _signs() -> list[dict[str, Any]]:
    scheme = charter().adapter
    return [
        {"subspace": subspace, "linear": name, "signs": a_signs(scheme, subspace, name).tolist()}
        for subspace, name in ((0, "layers.0.q"), (2, "layers.1.down"))
    ]


def _deltas() -> list[dict[str, Any]]:
    cases = []
    for codec in CODECS:
        # 2 layers x rank 3 x (6 + 4) = 60 elements; rank 29 gives 580, which no packing divides evenly.
        for rank in (3, 29):
            swarm = charter(codec=codec, rank=rank)
            value = delta(swarm, "vector")
            blob = encode_delta(swarm, author=KEYS[0].peer, round_=7, delta=value)
            cases.append(
                {
                    "codec": codec,
                    "rank": rank,
                    "swarm_id": swarm.swarm_id.hex(),
                    "author": KEYS[0].peer.hex(),
                    "round": 7,
                    "codes": value.codes.tolist(),
                    "exponents": value.exponents.tolist(),
                    "blob": blob.hex(),
                    "digest": blob_digest(blob).hex(),
                }
            )
    return cases


def _adapters() -> list[dict[str, Any]]:
    cases = []
    for scheme, subspaces in (("cycle", 3), ("fixed", 1), ("pair", 1)):
        swarm = charter(scheme=scheme, subspaces=subspaces)
        genesis = genesis_adapter(swarm)
        raw = stream(f"state {scheme}", genesis.state.nbytes).view("<i4").astype(np.int32)
        some = Adapter(np.maximum(raw, -(2**31) + 1).reshape(genesis.state.shape))
        for name, adapter in (("genesis", genesis), ("some state", some)):
            blob = encode_adapter(swarm, adapter)
            cases.append(
                {
                    "name": name,
                    "scheme": scheme,
                    "swarm_id": swarm.swarm_id.hex(),
                    "state": adapter.state.tolist(),
                    "blob": blob.hex(),
                    "digest": blob_digest(blob).hex(),
                }
            )
    return cases


def _merges() -> list[dict[str, Any]]:
    cases = []
    for rule in RULES:
        for codec in CODECS:
            for rank, count in ((2, 5), (256, 8)):
                swarm = charter(codec=codec, rule=rule, rank=rank)
                merged = merge(swarm, genesis_adapter(swarm), slate(swarm, count, 7), 7)
                case = {
                    "rule": rule,
                    "codec": codec,
                    "rank": rank,
                    "deltas": count,
                    "round": 7,
                    "digest": blob_digest(encode_adapter(swarm, merged)).hex(),
                }
                if rank == 2:
                    case["state"] = merged.state.tolist()
                cases.append(case)
    return cases


def _branches() -> list[dict[str, Any]]:
    cases = []
    for rule in RULES:
        for codec in CODECS:
            swarm = charter(codec=codec, rule=rule)
            of = dict.fromkeys((1, 2, 4, 7), b"\x0c" * 32) | dict.fromkeys((3, 6), OPEN)
            branches = [(number.to_bytes(32, "big"), branch) for number, branch in sorted(of.items())]
            merged = merge(swarm, genesis_adapter(swarm), slate(swarm, 9, 7), 7, branches)
            cases.append(
                {
                    "rule": rule,
                    "codec": codec,
                    "rank": 2,
                    "deltas": 9,
                    "round": 7,
                    "branches": [[author.hex(), branch.hex()] for author, branch in branches],
                    "digest": blob_digest(encode_adapter(swarm, merged)).hex(),
                    "state": merged.state.tolist(),
                }
            )
    return cases


def _fields(value: Any) -> Any:
    if isinstance(value, Record):
        return {name: _fields(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, tuple):
        return [_fields(item) for item in value]
    return value.hex() if isinstance(value, bytes) else value


if __name__ == "__main__":
    main()
