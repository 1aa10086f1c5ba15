"""The demo, from four empty homes to a verified adapter and a loss table."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sterna.app.demo.measure import Gains, measure_gains
from sterna.app.demo.processes import LOOPBACK, DemoPeer, run_json
from sterna.app.founding import find_base
from sterna.app.homes import open_home_for_reading
from sterna.errors import ConfigError, NodeError
from sterna.train.text import read_split
from sterna_protocol.swarm.charter import SignedCharter

POLL_SECONDS = 0.25
START_SECONDS = 120.0
ROUND_SECONDS = 600.0
CHAOS_KILL_ROUND = 2
CHAOS_RESTART_ROUND = 3

SAMPLE_PROMPT = "In the beginning"
SAMPLE_TOKENS = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPlan:
    """What the demo does. ``data`` holds one file per peer."""

    folder: Path
    data: Sequence[Path]
    base: str
    rounds: int
    steps: int
    seed: int
    chaos: bool
    measure: bool


class Demo:
    """Runs a plan. ``peers`` and ``note`` are what a screen shows meanwhile."""

    def __init__(self, plan: DemoPlan) -> None:
        self.plan = plan
        self.note = f"starting {len(plan.data)} processes"
        self.peers = [
            DemoPeer(index, plan.folder / f"peer-{index + 1}", data) for index, data in enumerate(plan.data)
        ]

    async def run(self) -> dict[str, Any]:
        """The report (docs/howto/demo-report.md).

        Raises:
            ConfigError: the folder holds peers already.
            DataError: a file cannot be trained on; no process was started.
            NodeError: a process ended, or no round closed in time.
        """
        started = time.monotonic()
        for peer in self.peers:
            # What an earlier demo's node said of itself would pass for this one's.
            if peer.home.exists():
                raise ConfigError(f"{peer.home} is there already: name an empty folder with --folder")
            await asyncio.to_thread(read_split, peer.data)
        try:
            ticket = await self._found()
            chaos = await self._watch_rounds()
            pulled = await self._pull(ticket)
            swarm_seconds = time.monotonic() - started
        finally:
            await asyncio.gather(*(peer.stop() for peer in self.peers))
        report = self._report(pulled, chaos)
        if chaos is not None:
            chaos["conflicting_own_messages"] = self._count_evidence()
        if self.plan.measure:
            self._add_gains(report, await self._gains())
        report["seconds"] = {
            "swarm": round(swarm_seconds, 1),
            "total": round(time.monotonic() - started, 1),
        }
        return report

    async def _found(self) -> str:
        founder, *joiners = self.peers
        plan = self.plan
        common = ("--listen", LOOPBACK, "--until-round", str(plan.rounds), "--seed", str(plan.seed))
        await founder.start(
            *("swarm", "create", "--name", "demo", "--base", plan.base, "--data", str(founder.data)),
            *("--steps", str(plan.steps), "--min-deltas", str(len(self.peers) - 1), *common),
        )
        status = await self._wait(founder, lambda status: bool(status.get("ticket")), START_SECONDS)
        ticket = str(status["ticket"])
        for peer in joiners:
            await peer.start("join", ticket, "--data", str(peer.data), *common)
        return ticket

    async def _watch_rounds(self) -> dict[str, Any] | None:
        chaos: dict[str, Any] | None = None
        if self.plan.chaos:
            chaos = await self._kill_and_restart(self.peers[-1])
        for round_ in range(1, self.plan.rounds + 1):
            self.note = f"round {round_}: every peer trains on its own text, then all agree on one merge"
            for peer in self.peers:
                await self._wait(peer, partial(_has_certified, round_), ROUND_SECONDS)
        return chaos

    async def _kill_and_restart(self, victim: DemoPeer) -> dict[str, Any]:
        witness = self.peers[0]
        await self._wait(
            victim,
            lambda status: status.get("round") == CHAOS_KILL_ROUND and status["training"]["step"] > 0,
            ROUND_SECONDS,
        )
        self.note = f"SIGKILL for {victim.label}; the others carry on"
        await victim.kill()
        await self._wait(witness, lambda status: status.get("round", 0) >= CHAOS_RESTART_ROUND, ROUND_SECONDS)
        self.note = f"{victim.label} is back"
        await victim.start(
            *("resume", "--listen", LOOPBACK, "--until-round", str(self.plan.rounds)),
            *("--seed", str(self.plan.seed)),
        )
        return {
            "peer": victim.label,
            "killed_in_round": CHAOS_KILL_ROUND,
            "restarted_in_round": CHAOS_RESTART_ROUND,
        }

    async def _wait(
        self, peer: DemoPeer, reached: Callable[[dict[str, Any]], bool], seconds: float
    ) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while True:
            for each in self.peers:
                each.require_alive()
            status = peer.status()
            if status and status.get("running") and reached(status):
                return status
            if time.monotonic() > deadline:
                raise NodeError(
                    f"{peer.label} did not get on within {seconds:.0f} s: round {status.get('round')}, "
                    f"phase {status.get('phase')}; its log is {peer.log}"
                )
            await asyncio.sleep(POLL_SECONDS)

    async def _pull(self, ticket: str) -> dict[str, Any]:
        self.note = "a fifth process pulls the adapter and verifies it"
        target = self.plan.folder / "adapter"
        pulled = await run_json("pull", ticket, "--format", "peft", "-o", str(target))
        verified = await run_json("verify", ticket)
        return {
            "digest": pulled["adapter_digest"],
            "verified": bool(verified["verified"]) and verified["adapter_digest"] == pulled["adapter_digest"],
            "path": str(target),
        }

    async def _gains(self) -> Gains:
        founder = self.peers[0]
        with open_home_for_reading(founder.home) as store:
            [swarm] = store.swarms()
            adapter = store.blobs.read(bytes.fromhex(founder.status()["adapter_digest"]))
            charter = SignedCharter.decode(swarm.signed_charter).charter
        return await measure_gains(
            base=find_base(self.plan.base).path,
            charter=charter,
            adapter=adapter,
            data=self.plan.data,
            rounds=self.plan.rounds,
            seed=self.plan.seed,
            prompt=SAMPLE_PROMPT,
            sample_tokens=SAMPLE_TOKENS,
            workers=min(2, os.cpu_count() or 1),
            note=self._set_note,
        )

    def _count_evidence(self) -> int:
        """Proofs, over all peers' stores, that somebody signed two different messages for one place."""
        found = 0
        for peer in self.peers:
            with open_home_for_reading(peer.home) as store:
                found += sum(len(store.evidence(swarm.swarm)) for swarm in store.swarms())
        return found

    def _set_note(self, note: str) -> None:
        self.note = note

    def _report(self, pulled: dict[str, Any], chaos: dict[str, Any] | None) -> dict[str, Any]:
        statuses = [peer.status() for peer in self.peers]
        report: dict[str, Any] = {
            "swarm": statuses[0]["swarm"],
            "rounds": [
                {
                    key: entry[key]
                    for key in ("round", "slate_size", "signatures", "adapter_digest", "seconds")
                }
                for entry in statuses[0]["rounds"]
            ],
            "peers": [
                {
                    "peer": status["peer"],
                    "label": peer.label,
                    "text": peer.data.stem,
                    "data": str(peer.data),
                    "adapter_digest": status["adapter_digest"],
                }
                for peer, status in zip(self.peers, statuses, strict=True)
            ],
            "pulled": pulled,
        }
        if chaos is not None:
            report["chaos"] = chaos
        return report

    def _add_gains(self, report: dict[str, Any], gains: Gains) -> None:
        report["union_loss_before"] = gains.base.union
        report["union_loss_after"] = gains.swarm.union
        for index, peer in enumerate(report["peers"]):
            peer["loss_before"] = gains.base.union
            peer["loss_after"] = gains.swarm.union
            peer["alone_loss"] = gains.alone[index]
            peer["own_loss_before"] = gains.base.by_text[index]
            peer["own_loss_after"] = gains.swarm.by_text[index]
        report["sample"] = {
            "prompt": SAMPLE_PROMPT,
            "before": gains.sample_before,
            "after": gains.sample_after,
        }


def _has_certified(round_: int, status: dict[str, Any]) -> bool:
    return int(status.get("certified_rounds", 0)) >= round_ and bool(status["adapter_held"])
