"""A node while it runs: network events go in, its status and what a person wants to know come out."""

from __future__ import annotations

import asyncio
import logging
import math
from pathlib import Path
from typing import Any, Protocol

from sterna.app.journal import SwarmJournal
from sterna.app.membership import describe_roll, peer_class
from sterna.app.status import StatusWriter
from sterna.errors import StorageError, Unreachable
from sterna.net import Gossip, Net, PeerConnected, PeerDisconnected, PeerLied, Request
from sterna.store import WaitingActs
from sterna.swarm.driver import Driver
from sterna.swarm.gate import Gate, Judged
from sterna_protocol.errors import RemoteProtocolError
from sterna_protocol.swarm.charter import Charter, SignedCharter
from sterna_protocol.swarm.introduction import answer_charter_request, is_charter_request
from sterna_protocol.swarm.ticket import Ticket, encode_ticket
from sterna_protocol.wire.ids import peer_name

logger = logging.getLogger(__name__)

ROUNDS_IN_STATUS = 100
"""Last rounds repeated in the status file; `sterna rounds` reads all from the store."""

REMEMBER_SECONDS = 20.0
"""Between two looks at where the connected peers listen."""

ACTS_SECONDS = 1.0
"""Between two looks for what `sterna revoke` and the like left in the home."""

NOT_IN_SWARM = (
    "this peer is not in the swarm (never invited, the invite used up or expired, revoked, or it left): "
    "it follows and trains nothing; ask a member for a ticket of `sterna invite` and join with it"
)

TICKET_ADDRESSES = 4
"""Own addresses put into a ticket; more would not fit a line of chat."""


class Display(Protocol):
    """Where a node tells its operator what happens."""

    def event(self, name: str, **fields: Any) -> None: ...


class KeyRotated(Exception):
    """A certified round gave this node's place to its next key; it goes on under that one."""


class RunningNode:
    """Plugs one driver and one network together."""

    def __init__(
        self,
        *,
        home: Path,
        signed: SignedCharter,
        net: Net,
        driver: Driver,
        gate: Gate,
        journal: SwarmJournal,
        acts: WaitingActs,
        invitation: bytes,
        display: Display,
    ) -> None:
        self._signed = signed
        self._net = net
        self._driver = driver
        self._gate = gate
        self._journal = journal
        self._acts = acts
        self._invitation = invitation
        self._display = display
        self._status = StatusWriter(home, self._describe)
        self._connected: frozenset[bytes] = frozenset()
        self._shown_rounds = len(driver.closed_rounds)
        self._shown_errors: list[str] = []
        self._shown_verdict = gate.newest
        self._shown_missing = 0

    async def run(self) -> None:
        """Run until cancelled.

        Raises:
            StorageError: the disk refused a write that had to be durable.
            NodeError: the network process cannot be kept alive.
        """
        self._display.event("listening", addresses=" ".join(self._net.addresses))
        self._display.event("ticket", ticket=self._ticket(), invites=self._ticket_invites())
        self._show_waiting()
        self._driver.changed = self._mark_changed
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._driver.run())
                group.create_task(self._take_events())
                group.create_task(self._remember_peers())
                group.create_task(self._bring_acts())
                group.create_task(self._status.keep_written())
        except ExceptionGroup as group:
            # One failure has ended all tasks; the caller wants that one, not a group of one. With `except*`
            # early releases of Python 3.11 would put it into a new group.
            raise _first(group) from group

    async def _take_events(self) -> None:
        async for event in self._net.events():
            match event:
                case Gossip(author, data):
                    await self._driver.gossip(author, data)
                case Request(peer, request_id, data):
                    await self._answer(peer, request_id, data)
                case PeerConnected(peer, _):
                    self._display.event("peer.connected", peer=peer_name(peer))
                    self._set_connected(self._connected | {peer})
                case PeerDisconnected(peer):
                    self._display.event("peer.gone", peer=peer_name(peer))
                    self._set_connected(self._connected - {peer})
                case PeerLied(peer):
                    self._display.event("peer.lied", peer=peer_name(peer))

    async def _answer(self, peer: bytes, request_id: int, data: bytes) -> None:
        if not is_charter_request(data):
            await self._driver.answer(peer, request_id, data)
            return
        try:
            response = answer_charter_request(data, self._signed)
        except RemoteProtocolError as broken:
            await self._driver.penalise(peer, str(broken))
            return
        await self._net.respond(request_id, response)

    def _set_connected(self, connected: frozenset[bytes]) -> None:
        self._connected = connected
        self._driver.peers_changed(connected)
        self._show_waiting()

    async def _remember_peers(self) -> None:
        """Note where peers listen, so that a restarted node finds back without its first contact."""
        while True:
            await asyncio.sleep(REMEMBER_SECONDS)
            try:
                for peer, addresses in (await self._net.known_addresses()).items():
                    await self._journal.put_peer(peer, addresses)
            except (Unreachable, StorageError) as failed:
                logger.info("peers.unwritten", extra={"why": str(failed)})

    async def _bring_acts(self) -> None:
        """Bring what waits in the home before the committee, and forget what was carried out.

        Raises:
            KeyRotated: what was carried out is a new key of this node.
        """
        while True:
            if self._net.peer in self._driver.node.roll.renamed:
                raise KeyRotated
            try:
                for act in self._acts.all():
                    if self._driver.node.roll.has_done(act):
                        self._acts.drop(act)
                    else:
                        self._driver.bring(act)
            except StorageError as failed:
                logger.warning("acts.unreadable", extra={"why": str(failed)})
            await asyncio.sleep(ACTS_SECONDS)

    def _errors(self) -> list[str]:
        errors = self._driver.activity.errors()
        if not self._driver.node.may_announce:
            errors.append(NOT_IN_SWARM)
        return errors

    def _mark_changed(self) -> None:
        self._status.mark_changed()
        for entry in self._driver.closed_rounds[self._shown_rounds :]:
            self._shown_rounds += 1
            self._display.event(
                f"round {entry['round']} certified",
                merged=entry["slate_size"],
                signatures=entry["signatures"],
                adapter=str(entry["adapter_digest"])[:16],
            )
        self._show_verdict()
        errors = self._errors()
        for error in errors:
            if error not in self._shown_errors:
                self._display.event("trouble", why=error)
        self._shown_errors = errors

    def _show_waiting(self) -> None:
        missing = peers_missing(self._signed.charter, len(self._connected))
        if missing > self._shown_missing:
            self._display.event("waiting", peers=missing, min_deltas=self._signed.charter.limits.min_deltas)
        self._shown_missing = missing

    def _show_verdict(self) -> None:
        served, newest = self._gate.served, self._gate.newest
        if newest is self._shown_verdict or served is None or newest is None:
            return
        self._shown_verdict = newest
        if self._gate.is_holding_back:
            self._display.event(
                f"round {newest.round_} is held back",
                loss=f"{newest.loss:.3f}",
                serving=f"round {served.round_}",
                its_loss=f"{served.loss:.3f}",
            )

    def _ticket_invites(self) -> bool:
        return self._signed.charter.admission.mode == "open" or bool(self._invitation)

    def _ticket(self) -> str:
        head = self._driver.node.head
        return encode_ticket(
            Ticket(
                swarm=self._signed.charter.swarm_id,
                addresses=self._net.addresses[:TICKET_ADDRESSES],
                anchor_round=head.round_ if head else 0,
                anchor=head.id if head else b"",
                invite=self._invitation,
            )
        )

    def _describe(self) -> dict[str, Any]:
        driver, node = self._driver, self._driver.node
        activity = driver.activity
        return {
            "peer": peer_name(self._net.peer),
            "swarm": self._signed.charter.swarm_id.hex(),
            "name": self._signed.charter.name,
            "ticket": self._ticket(),
            "ticket_invites": self._ticket_invites(),
            "addresses": list(self._net.addresses),
            "round": node.round_,
            "phase": node.phase.name.lower(),
            "committee": [peer_name(member) for member in node.committee],
            "peers": sorted(peer_name(peer) for peer in self._connected),
            "peers_missing": peers_missing(self._signed.charter, len(self._connected)),
            "min_deltas": self._signed.charter.limits.min_deltas,
            "training": {
                "active": activity.training,
                "step": activity.step,
                "steps": activity.steps,
                "loss": activity.loss,
            },
            "adapter_digest": node.head_adapter.hex(),
            "certified_rounds": node.head.round_ if node.head else 0,
            "adapter_held": self._journal.has_blob(node.head_adapter),
            "served": _describe_judged(self._gate.served),
            "judged": _describe_judged(self._gate.newest),
            "held_back": self._gate.is_holding_back,
            "rounds": driver.closed_rounds[-ROUNDS_IN_STATUS:],
            "class": peer_class(node.roll, self._net.peer),
            "roll": describe_roll(node.roll),
            "errors": self._errors(),
        }


def peers_missing(charter: Charter, connected: int) -> int:
    """How many more peers it takes, with this one and those connected, for the deltas that make a merge."""
    return max(0, charter.limits.min_deltas - 1 - connected)


def _describe_judged(judged: Judged | None) -> dict[str, Any] | None:
    if judged is None:
        return None
    loss = judged.loss if math.isfinite(judged.loss) else None
    return {"round": judged.round_, "adapter_digest": judged.adapter.hex(), "loss": loss}


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group
