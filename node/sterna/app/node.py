"""Running a node: found, join or resume, then drive one swarm until the process is told to stop."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sterna.app.founding import FoundBase, FoundingChoices, base_of_charter, find_base, found
from sterna.app.homes import open_home
from sterna.app.journal import SwarmJournal
from sterna.app.light import fetch_charter, topic_of
from sterna.app.membership import network_key_of, put_network_key, ticket_invitation
from sterna.app.observe import LAST_SWARM
from sterna.app.running import Display, KeyRotated, RunningNode
from sterna.app.trainer import WorkerTrainer
from sterna.errors import ConfigError
from sterna.net import NetConfig, open_net
from sterna.store import Membership, Store, WaitingActs
from sterna.swarm.activity import Activity
from sterna.swarm.driver import Driver
from sterna.swarm.gate import DEFAULT_TOLERANCE, Gate
from sterna.swarm.light import genesis_digest
from sterna.train.tokens import check_data
from sterna.train.worker import WorkerConfig, open_worker
from sterna_protocol.merge.adapter import encode_adapter, genesis_adapter
from sterna_protocol.node import Node
from sterna_protocol.round.chain import Chain
from sterna_protocol.round.recovery import LOCK
from sterna_protocol.swarm.charter import Charter, SignedCharter
from sterna_protocol.swarm.invitation import Invitation, decode_invitation, standing_invitation
from sterna_protocol.swarm.ticket import decode_ticket
from sterna_protocol.wire.chunks import blob_digest
from sterna_protocol.wire.limits import MAX_STALENESS
from sterna_protocol.wire.messages import Certificate, Evidence, Kind, Signed, decode_frame
from sterna_protocol.wire.signing import SigningKey

T = TypeVar("T")

DEFAULT_LISTEN = ("/ip4/0.0.0.0/tcp/0",)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOptions:
    """How this node runs; nothing in here has to be agreed on with others.

    ``tolerance``: nats per token by which a certified adapter may be worse on the own hold-out text than the
    one served before, and still be served.
    """

    home: Path | None
    data: Path | None
    listen: tuple[str, ...] = ()
    until_round: int | None = None
    threads: int = 1
    seed: int | None = None
    tolerance: float = DEFAULT_TOLERANCE


async def create_swarm(base: str, choices: FoundingChoices, options: NodeOptions, display: Display) -> None:
    """Found a swarm and run its first node until cancelled.

    Raises:
        ConfigError, DataError: an option or the data cannot be; nothing was founded.
    """
    chosen = find_base(base, options.home)
    data = _checked(options.data, chosen, display)
    async with _opened(options.home) as (store, thread):
        key = SigningKey.from_seed(await _in(thread, store.key))
        signed = found(chosen, key, choices)
        if signed.charter.admission.mode == "psk":
            network_key = secrets.token_bytes(32)
            await _in(thread, put_network_key, store, signed.charter.swarm_id, network_key)
        membership = await _in(thread, _remember, store, signed, data, ())
        await _run(store, thread, membership, chosen, options, display)


async def join_swarm(ticket_text: str, options: NodeOptions, display: Display) -> None:
    """Join the ticket's swarm and run a node until cancelled; joining again is resuming.

    Raises:
        MalformedMessage: the ticket is not one.
        Unreachable: nobody in the ticket answers.
        ConfigError, DataError: the base or the data cannot be; nothing was joined.
    """
    ticket = decode_ticket(ticket_text)
    invitation = decode_invitation(ticket.invite, ticket.swarm) if ticket.invite else None
    async with _opened(options.home) as (store, thread):
        known = {swarm.swarm: swarm for swarm in await _in(thread, store.swarms)}.get(ticket.swarm)
        if known is None:
            display.event("joining", looking_for=f"{len(ticket.addresses)} addresses of the ticket")
            signed = await fetch_charter(ticket)
            if (invitation is None or not invitation.invites) and signed.charter.admission.mode != "open":
                raise ConfigError(
                    "this ticket invites nobody, and the swarm takes only who was invited: ask a member for "
                    "the ticket that `sterna invite` prints"
                )
        else:
            signed = SignedCharter.decode(known.signed_charter)
        base = base_of_charter(signed.charter, options.home)
        data = _checked(options.data, base, display)
        membership = await _in(thread, _remember, store, signed, data, ticket.addresses)
        if invitation is not None and invitation.network_key:
            await _in(thread, put_network_key, store, membership.swarm, invitation.network_key)
        if invitation is not None and invitation.invites:
            await _in(thread, _accept, store, signed.charter, invitation)
        await _run(store, thread, membership, base, options, display)


async def resume_swarm(options: NodeOptions, display: Display) -> None:
    """Run the node of the swarm this home ran last, until cancelled.

    Raises:
        ConfigError: this home is in no swarm.
    """
    async with _opened(options.home) as (store, thread):
        last = await _in(thread, store.setting, LAST_SWARM)
        if last is None:
            raise ConfigError(
                f"{store.home} is in no swarm: sterna join TICKET --data FILE, or sterna swarm create"
            )
        kept = await _in(thread, store.swarm, bytes.fromhex(last))
        signed = SignedCharter.decode(kept.signed_charter)
        base = base_of_charter(signed.charter, options.home)
        data = _checked(options.data or Path(kept.data), base, display)
        membership = await _in(thread, _remember, store, signed, data, kept.addresses)
        await _run(store, thread, membership, base, options, display)


@asynccontextmanager
async def _opened(home: Path | None) -> AsyncIterator[tuple[Store, Executor]]:
    """The store and the one thread it lives in."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="store") as thread:
        store = await _in(thread, open_home, home)
        try:
            yield store, thread
        finally:
            await _in(thread, store.close)


async def _in(thread: Executor, call: Callable[..., T], *arguments: Any) -> T:
    return await asyncio.get_running_loop().run_in_executor(thread, call, *arguments)


def _checked(data: Path | None, base: FoundBase, display: Display) -> Path:
    """The data file, read once as training will read it, before anything else happens."""
    if data is None:
        raise ConfigError("no data: name your text with --data FILE")
    path = data.expanduser().resolve()
    summary = check_data(path, tokenizer_json=base.base.tokenizer_json)
    display.event(
        "data",
        file=path.name,
        documents=summary.documents,
        tokens=summary.tokens,
        held_out=summary.held_out_documents,
    )
    return path


def _remember(store: Store, signed: SignedCharter, data: Path, addresses: tuple[str, ...]) -> Membership:
    swarm = store.add_swarm(signed.encode(), data=str(data), addresses=addresses)
    store.put_setting(LAST_SWARM, swarm.hex())
    return store.swarm(swarm)


def _accept(store: Store, charter: Charter, invitation: Invitation) -> None:
    """Leave the act that lets this peer in where its node finds it."""
    key = SigningKey.from_seed(store.key())
    if key.peer not in charter.founders:
        WaitingActs(store.home, charter.swarm_id).put(invitation.admit(key, charter.swarm_id))


@dataclass(frozen=True, slots=True)
class _Memory:
    """What the disk still knows of a swarm."""

    seed: bytes
    certificates: tuple[Certificate, ...]
    own_frames: tuple[bytes, ...]
    evidence: tuple[Evidence, ...]
    addresses: tuple[str, ...]
    rounds: tuple[dict[str, object], ...]


def _recall(store: Store, membership: Membership) -> _Memory:
    frames = [decode_frame(frame) for frame in store.certificates(membership.swarm)]
    certificates = tuple(frame for frame in frames if isinstance(frame, Certificate))
    open_round = certificates[-1].round_ + 1 if certificates else 1
    oldest = max(1, open_round - MAX_STALENESS)
    proofs = [decode_frame(frame) for frame in store.evidence(membership.swarm)]
    met = [address for peer in store.address_book.peers(membership.swarm) for address in peer.addresses]
    return _Memory(
        seed=store.key(),
        certificates=certificates,
        own_frames=_own_frames(store, membership.swarm, oldest, open_round),
        evidence=tuple(proof for proof in proofs if isinstance(proof, Evidence)),
        addresses=tuple(dict.fromkeys((*membership.addresses, *met))),
        rounds=tuple(json.loads(entry) for _, entry in store.round_log(membership.swarm)),
    )


def _own_frames(store: Store, swarm: bytes, oldest: int, newest: int) -> tuple[bytes, ...]:
    """What this node signed in these rounds under the key that it has now."""
    me = SigningKey.from_seed(store.key()).peer
    kept: list[bytes] = []
    for round_ in range(oldest, newest + 1):
        frames = [frame for frame in store.own_frames(swarm, round_) if frame[:1] != bytes((Kind.REFORM,))]
        signed = [decode_frame(frame) for frame in frames if frame[:1] != bytes((LOCK,))]
        # A key is rotated between two rounds: all messages of one round are of one key.
        if any(isinstance(message, Signed) and message.author == me for message in signed):
            kept += frames
    return tuple(kept)


async def _run(
    store: Store,
    thread: Executor,
    membership: Membership,
    base: FoundBase,
    options: NodeOptions,
    display: Display,
) -> None:
    """Run until cancelled; under the next key from the round that certifies it."""
    while True:
        await _in(thread, _go_over_to_next_key, store, membership)
        try:
            await _run_under_one_key(store, thread, membership, base, options, display)
        except KeyRotated:
            display.event("key.rotated")


def _go_over_to_next_key(store: Store, membership: Membership) -> None:
    """Take the new key if the certified rounds say that this node's key was rotated."""
    charter = SignedCharter.decode(membership.signed_charter).charter
    frames = [decode_frame(frame) for frame in store.certificates(membership.swarm)]
    certificates = [frame for frame in frames if isinstance(frame, Certificate)]
    roll = Chain(charter, genesis_digest(charter), certificates).roll
    if SigningKey.from_seed(store.key()).peer in roll.renamed:
        store.adopt_next_key()


async def _run_under_one_key(
    store: Store,
    thread: Executor,
    membership: Membership,
    base: FoundBase,
    options: NodeOptions,
    display: Display,
) -> None:
    signed = SignedCharter.decode(membership.signed_charter)
    charter = signed.charter
    memory: _Memory = await _in(thread, _recall, store, membership)
    key = SigningKey.from_seed(memory.seed)
    network_key = await _in(thread, network_key_of, store, charter.swarm_id)
    acts = WaitingActs(store.home, charter.swarm_id)
    journal = SwarmJournal(store, charter.swarm_id, thread)
    genesis = encode_adapter(charter, genesis_adapter(charter))
    await journal.put_blob(genesis)
    config = NetConfig(
        identity_seed=memory.seed,
        listen=options.listen or DEFAULT_LISTEN,
        bootstrap=memory.addresses,
        topic=topic_of(charter.swarm_id),
        blobs=store.home / "blobs",
        network_key=network_key,
    )
    rng = random.Random(secrets.randbits(64))
    activity = Activity()
    async with (
        open_net(config) as net,
        open_worker(WorkerConfig(base=base.path, threads=options.threads)) as worker,
    ):
        trainer = WorkerTrainer(
            worker=worker,
            charter=charter,
            author=key.peer,
            data=Path(membership.data),
            seed=options.seed if options.seed is not None else secrets.randbits(32),
            progress=activity.note_step,
        )
        verdicts = await journal.verdicts()
        gate = Gate(
            journal,
            trainer.judge,
            base=genesis,
            tolerance=options.tolerance,
            served=verdicts[0] if verdicts else None,
            newest=verdicts[1] if verdicts else None,
        )
        node = Node(
            charter,
            key,
            trains=True,
            now=time.monotonic(),
            genesis_adapter=blob_digest(genesis),
            certificates=memory.certificates,
            own_frames=memory.own_frames,
            evidence=memory.evidence,
            acts=acts.all(),
        )
        driver = Driver(
            charter=charter,
            node=node,
            network=net,
            trainer=trainer,
            journal=journal,
            clock=time.monotonic,
            rng=rng,
            activity=activity,
            closed_rounds=memory.rounds,
            until_round=options.until_round,
            gate=gate,
        )
        standing = standing_invitation(key, charter) if key.peer in node.roll.founders else None
        running = RunningNode(
            home=store.home,
            signed=signed,
            net=net,
            driver=driver,
            gate=gate,
            journal=journal,
            acts=acts,
            invitation=ticket_invitation(standing, network_key),
            display=display,
        )
        await running.run()
