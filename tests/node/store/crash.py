"""Stop a node at every change of its disk and at random moments, start it again, and look for what it forgot.

    python -m tests.node.store.crash --kills 1000 --seed 1

Prints one JSON line; ends with 1 when a check failed. The ways to stop the node:

* ``steps``: SIGKILL before each numbered change that the store itself makes (``Disk.before``);
* ``calls``: SIGKILL before, and in the middle of, each system call that changes a file, those inside SQLite
  too (``shim.c``, preloaded; needs a C compiler);
* ``full``, ``failed``: each of these calls answers ENOSPC from then on, or EIO once; the node must end with
  a StorageError;
* ``random``: SIGKILL after a random time.

Each time the node comes back as a *different* one that would rather sign something else: what it said before
must hold it back.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sterna.errors import StorageError
from sterna.store import Disk, PendingDelta, Store, open_store
from sterna_protocol.wire.chunks import blob_digest
from tests.node.store import sample

CHARTER = sample.charter()
SIGNED = sample.signed(CHARTER).encode()
SWARM = CHARTER.swarm_id
CHAIN = [certificate.frame() for certificate in sample.chain(CHARTER, 400)]
KINDS = (1, 2, 4, 5)
BLOB_BYTES = 40_000

KILL, TEAR = 0, -1
REFUSED, TRACEBACK = 4, 3
Tell = Callable[[str], None]


@dataclass(slots=True)
class Told:
    """What the node said it had saved or sent, over all its lives."""

    key: str | None = None
    sent: dict[str, str] = field(default_factory=dict)
    certified: int = 0
    pending: tuple[int, str] | None = None
    contradictions: list[str] = field(default_factory=list)

    def hear(self, line: str) -> None:
        what, _, rest = line.partition(" ")
        if what == "key":
            if self.key not in (None, rest):
                self.contradictions.append(f"two keys: {self.key} and {rest}")
            self.key = rest
        elif what == "sent":
            place, _, digest = rest.partition(" ")
            if self.sent.setdefault(place, digest) != digest:
                self.contradictions.append(f"two messages for {place}")
        elif what == "certified":
            self.certified = max(self.certified, int(rest))
        elif what == "pending":
            round_, _, delta = rest.partition(" ")
            self.pending = (int(round_), delta)


def live(home: Path, disk: Disk, tell: Tell, *, mood: int, rounds: int) -> None:
    """One life of a node: go on where the store says, a few rounds, telling what is acknowledged."""
    noise = random.Random(mood)
    with open_store(home, disk=disk) as store:
        tell(f"key {store.key().hex()}")
        store.add_swarm(SIGNED, data=f"/mood/{mood}")
        first = len(store.certificates(SWARM)) + 1
        for round_ in range(first, first + rounds):
            _train(store, round_, noise, tell)
            for attempt in (0, 1):
                for kind in KINDS:
                    _say(store, round_, attempt, kind, noise.randbytes(300), tell)
            store.put_certificate(SWARM, round_, CHAIN[round_ - 1])
            tell(f"certified {round_}")
            store.put_round_log(SWARM, round_, "{}")
            store.collect()


def _train(store: Store, round_: int, noise: random.Random, tell: Tell) -> None:
    pending = store.pending(SWARM)
    if pending is not None and pending.round_ == round_:
        return
    store.blobs.put(noise.randbytes(BLOB_BYTES))
    delta = store.blobs.put(noise.randbytes(BLOB_BYTES))
    store.put_pending(SWARM, PendingDelta(round_, b"a" * 32, delta, sample.FIGURES))
    tell(f"pending {round_} {delta.hex()}")


def _say(store: Store, round_: int, attempt: int, kind: int, wish: bytes, tell: Tell) -> None:
    """Say what we wish, or what we said before: never both."""
    place = f"{round_}/{attempt}/{kind}"
    frame = place.encode() + b" " + wish
    try:
        store.put_own(SWARM, round_, attempt, kind, frame)
    except StorageError as error:
        if "already signed another" not in str(error):
            raise
        [frame] = [kept for kept in store.own_frames(SWARM, round_) if kept.startswith(place.encode() + b" ")]
    tell(f"sent {place} {blob_digest(frame).hex()}")


def check(home: Path, told: Told) -> list[str]:
    """What is wrong in ``home``, given what its node told; opening it checks the journal as well."""
    wrong = list(told.contradictions)
    with open_store(home) as store:
        if told.key is not None and store.key().hex() != told.key:
            wrong.append("the key changed")
        kept: dict[str, str] = {}
        for frame in store.own_frames(SWARM, 0, len(CHAIN)):
            kept[frame.partition(b" ")[0].decode()] = blob_digest(frame).hex()
        wrong += [f"message {place} lost" for place in told.sent if kept.get(place) != told.sent[place]]
        chain = store.certificates(SWARM)
        if chain != CHAIN[: len(chain)] or len(chain) < told.certified:
            wrong.append(f"{len(chain)} certificates, told {told.certified}")
        pending = store.pending(SWARM)
        if told.pending is not None and (pending is None or pending.round_ < told.pending[0]):
            wrong.append("the trained delta is lost")
        if pending is not None:
            store.blobs.read(pending.delta)
        for digest in store.blobs.digests():
            store.blobs.check(digest)
        leftovers = list(home.rglob("*.tmp"))
        wrong += [f"leftover {path.name}" for path in leftovers]
    return wrong


def run_until_killed(
    home: Path, told: Told, *, mood: int, rounds: int, disk: Disk | None = None, stop: Stop | None = None
) -> bool:
    """One life in a process of its own; whether it was killed, or stopped by its disk, before it was done."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        code = TRACEBACK
        try:
            if stop is not None and stop.arm is not None:
                stop.arm()
            live(
                home,
                disk or Disk(),
                lambda line: (os.write(writing, line.encode() + b"\n"), None)[1],
                mood=mood,
                rounds=rounds,
            )
            code = 0
        except StorageError:
            code = REFUSED
        finally:
            os._exit(code)
    os.close(writing)
    if stop is not None and stop.after_seconds is not None:
        time.sleep(stop.after_seconds)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reading, "rb") as lines:
        for line in lines.read().split(b"\n")[:-1]:
            told.hear(line.decode())
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) not in (0, REFUSED):
        told.contradictions.append(f"the node ended by itself with {os.WEXITSTATUS(status)}")
    return os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == REFUSED


@dataclass(frozen=True, slots=True)
class Stop:
    """How a life ends: by something armed inside it, or from outside after a time."""

    arm: Callable[[], None] | None = None
    after_seconds: float | None = None


def kill_before(step: int) -> Disk:
    """A disk that kills the process right before its change number ``step`` (from 1)."""
    count = 0

    def before(_name: str) -> None:
        nonlocal count
        count += 1
        if count == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return Disk(before)


class Campaign:
    """Kills in a row on one home, a fresh one now and then; remembers what went wrong."""

    LIVES_PER_HOME = 25

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self._told = Told()
        self._lives = 0
        self.kills = 0
        self.acknowledged = 0
        self.wrong: list[str] = []

    def kill(self, *, rounds: int, name: str, disk: Disk | None = None, stop: Stop | None = None) -> bool:
        """One life and one check; whether the life was cut short."""
        self._lives += 1
        killed = run_until_killed(
            self.home, self._told, mood=self._lives, rounds=rounds, disk=disk, stop=stop
        )
        self.kills += killed
        self.wrong += [f"{name}: {wrong}" for wrong in check(self.home, self._told)]
        if self._lives % self.LIVES_PER_HOME == 0:
            self.fresh_home()
        return killed

    def fresh_home(self) -> None:
        self.acknowledged += len(self._told.sent) + self._told.certified
        shutil.rmtree(self.home, ignore_errors=True)
        self._told = Told()


def kill_at_every_step(campaign: Campaign) -> int:
    """SIGKILL before each change of a first life, each in a home of its own; the number of changes."""
    step = 1
    while campaign.kill(rounds=1, name=f"step {step}", disk=kill_before(step)):
        campaign.fresh_home()
        step += 1
    campaign.fresh_home()
    return step - 1


def stop_at_every_call(campaign: Campaign, action: int, *, every: int, lasting: bool = False) -> int:
    """The same at each ``every``-th system call that changes a file; the number of lives.

    ``action`` is KILL, TEAR or the errno of the call's failure. A failure that the node survives (the
    courtesy of a process id in the lock) does not end the series: the number of calls of a whole life does.
    """
    for call in range(0, calls_of_a_life(campaign), every):
        campaign.kill(
            rounds=1,
            name=f"call {call}, action {action}",
            stop=Stop(arm=functools.partial(arm_shim, call, action, lasting)),
        )
        campaign.fresh_home()
    return call // every + 1


def calls_of_a_life(campaign: Campaign) -> int:
    """How many system calls change a file in the first life of a home."""
    arm_shim(2**31 - 1, KILL, False)
    live(campaign.home, Disk(), lambda _line: None, mood=0, rounds=1)
    calls = int(ctypes.CDLL(None).fault_counted())
    arm_shim(-1, KILL, False)
    campaign.fresh_home()
    return calls


def arm_shim(call: int, action: int, lasting: bool) -> None:
    """Let the call after ``call`` more be the chosen one."""
    ctypes.CDLL(None).fault_arm(ctypes.c_long(call), action, int(lasting))


def kill_at_random(campaign: Campaign, kills: int, seed: int) -> None:
    """SIGKILL at any moment of the time that two rounds take on this disk, until ``kills`` are counted."""
    started = time.monotonic()
    live(campaign.home, Disk(), lambda _line: None, mood=0, rounds=2)
    longest_seconds = time.monotonic() - started
    campaign.fresh_home()
    chance = random.Random(seed)
    while campaign.kills < kills:
        moment = Stop(after_seconds=chance.uniform(0, longest_seconds))
        campaign.kill(rounds=100, name=f"random {campaign.kills}", stop=moment)


def preload_shim(module: str, folder: Path) -> None:
    """Start this program, which is ``module``, again with ``shim.c`` preloaded."""
    library = folder / "shim.so"
    source = Path(__file__).with_name("shim.c")
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library), "STERNA_CRASH_FOLDER": str(folder)}
    arguments = [sys.executable, "-m", module, *sys.argv[1:]]
    os.execve(sys.executable, arguments, environment)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.node.store.crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000, help="random kills, after all the others")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--calls-every", type=int, default=1, help="take only each n-th system call; 0: none")
    parser.add_argument("--folder", type=Path, help="where to work; in memory (/dev/shm) it goes much faster")
    options = parser.parse_args()

    with_shim = options.calls_every > 0
    if with_shim and "STERNA_CRASH_FOLDER" not in os.environ:
        workplace = tempfile.mkdtemp(prefix="sterna-crash-", dir=options.folder)
        preload_shim("tests.node.store.crash", Path(workplace))
    given = os.environ.get("STERNA_CRASH_FOLDER")
    folder = Path(given or tempfile.mkdtemp(prefix="sterna-crash-", dir=options.folder))

    started = time.monotonic()
    campaign = Campaign(folder)
    report: dict[str, object] = {"steps": kill_at_every_step(campaign)}
    if with_shim:
        every = options.calls_every
        report["calls"] = stop_at_every_call(campaign, KILL, every=every)
        report["torn"] = stop_at_every_call(campaign, TEAR, every=every)
        report["full"] = stop_at_every_call(campaign, errno.ENOSPC, every=every, lasting=True)
        report["failed"] = stop_at_every_call(campaign, errno.EIO, every=every)
    stopped = campaign.kills
    kill_at_random(campaign, stopped + options.kills, options.seed)
    campaign.fresh_home()
    shutil.rmtree(folder)
    report |= {
        "stops": campaign.kills,
        "random": campaign.kills - stopped,
        "acknowledged": campaign.acknowledged,
        "seconds": round(time.monotonic() - started, 1),
        "wrong": campaign.wrong[:20],
    }
    sys.stdout.write(json.dumps(report) + "\n")
    return 1 if campaign.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
