"""One trial: a swarm cast from a seed, faults until most rounds are closed, then a healed network."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from typing import get_args

from sterna.errors import ConfigError
from sterna.simulate.attacks import ATTACKS, MIXED
from sterna.simulate.dice import Dice
from sterna.simulate.faults import Faults
from sterna.simulate.learning import Synthetic
from sterna.simulate.peer import key_of
from sterna.simulate.report import Report
from sterna.simulate.world import Casting, World
from sterna_protocol.swarm.charter import MAX_FOUNDERS, Charter, MergeRule
from sterna_protocol.swarm.defaults import default_charter

MIN_PEERS = 4
"""Below four members a quorum tolerates nobody, and every crash stops the swarm."""

MAX_PEERS = 5000
"""About 5 GiB of memory."""

MAX_TRAINERS = 40
"""Peers that train unless told otherwise: some more than a committee of 32."""

HEALED_ROUNDS = 2
"""Rounds that close after the network healed: within them all honest peers come to the same chain."""

TRAIN_MILLISECONDS = 20_000
ATTEST_MILLISECONDS = 3_000
VOTE_MILLISECONDS = 1_000
"""Short phases: real ones wait longer for the same messages."""

SICK_SECONDS_PER_ROUND = 60.0
"""How long faults go on at most; with the network cut half of the time a round takes about 40 s."""

RULES: tuple[str, ...] = get_args(MergeRule.model_fields["rule"].annotation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """All that a run depends on.

    Args:
        trainers: peers that train and may come into the committee; None: all, 40 at most.
        byzantine: share of the peers that attack, drawn among those who train and those who do not alike.
        attack: one of ``ATTACKS``, or ``mixed``.

    Raises:
        ConfigError: a value is out of its range.
    """

    peers: int
    rounds: int
    seed: int
    trainers: int | None = None
    byzantine: float = 0.0
    attack: str = MIXED
    rule: str = "mean"
    faults: Faults = field(default_factory=Faults)

    def __post_init__(self) -> None:
        if not MIN_PEERS <= self.peers <= MAX_PEERS:
            raise ConfigError(f"--peers {self.peers} is out of range: give {MIN_PEERS} to {MAX_PEERS}")
        if not 1 <= self.rounds <= 10_000:
            raise ConfigError(f"--rounds {self.rounds} is out of range: give 1 to 10000")
        if not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"--seed {self.seed} is out of range: give 0 to {(1 << 63) - 1}")
        if self.trainers is not None and not 2 <= self.trainers <= self.peers:
            raise ConfigError(f"--trainers {self.trainers} is out of range: give 2 to {self.peers}")
        if not 0.0 <= self.byzantine < 1.0:
            raise ConfigError(f"--byzantine {self.byzantine:g} is out of range: give 0 to below 1")
        if self.attack not in (MIXED, *ATTACKS):
            raise ConfigError(f"--attack {self.attack} is unknown: choose {MIXED}, {', '.join(ATTACKS)}")
        if self.rule not in RULES:
            raise ConfigError(f"--rule {self.rule} is unknown: choose {', '.join(RULES)}")

    @property
    def trainer_count(self) -> int:
        return min(self.peers, MAX_TRAINERS) if self.trainers is None else self.trainers

    def command(self) -> str:
        """The command that runs exactly this trial."""
        faults = self.faults
        words = [f"sterna simulate --peers {self.peers} --rounds {self.rounds} --seed {self.seed}"]
        if self.trainers is not None:
            words.append(f"--trainers {self.trainers}")
        for name in ("latency", "loss", "duplicate", "partition", "crash", "skew"):
            value = getattr(faults, name)
            if value != getattr(Faults(), name):
                words.append(f"--{name} {value!r}")
        if self.byzantine:
            words.append(f"--byzantine {self.byzantine!r}")
        if self.attack != MIXED:
            words.append(f"--attack {self.attack}")
        if self.rule != "mean":
            words.append(f"--rule {self.rule}")
        return " ".join(words)


def run_trial(trial: Trial) -> Report:
    """What became of the swarm; the same for the same trial, but for ``seconds``."""
    started = time.process_time()
    casting = cast(trial)
    charter = charter_of(trial)
    world = World(trial.seed, casting, charter, trial.faults, Synthetic())
    invariants = world.invariants
    sick_rounds = trial.rounds - HEALED_ROUNDS
    sick_seconds = SICK_SECONDS_PER_ROUND * max(1, sick_rounds)
    if sick_rounds > 0:
        world.run(lambda: world.closed_by_all() >= sick_rounds, sick_seconds)
    world.heal()
    healed_at = world.now
    longest = max(len(peer.disk.certificates) for peer in world.honest)
    goal = max(trial.rounds, longest + HEALED_ROUNDS)
    limit = healed_at + (goal - world.closed_by_all()) * patience(charter, world)
    world.run(lambda: world.closed_by_all() >= goal, limit)
    invariants.ends()
    if not invariants.violations and world.closed_by_all() < goal:
        standing = [len(peer.disk.certificates) for peer in world.honest]
        invariants.broken(
            f"no progress: {min(standing)} to {max(standing)} rounds closed {world.now - healed_at:.0f} s "
            f"after the network healed, {goal} expected"
        )
    was_sick = trial.faults != Faults(latency=trial.faults.latency)
    return Report.of(
        trial, world, healed_at=healed_at if was_sick else None, seconds=time.process_time() - started
    )


def cast(trial: Trial) -> Casting:
    """Draw who attacks, and how: of those who train, and of the rest, the same share, rounded down."""
    dice = Dice(trial.seed, "casting")
    trainers = trial.trainer_count
    founders = min(MAX_FOUNDERS, trainers)
    attacks: dict[int, str] = {}
    for group in (range(founders), range(founders, trainers), range(trainers, trial.peers)):
        liars = dice.shuffled(group)[: int(trial.byzantine * len(group))]
        for number in sorted(liars):
            attacks[number] = dice.pick(list(ATTACKS)) if trial.attack == MIXED else trial.attack
    return Casting(trial.peers, trainers, attacks)


def charter_of(trial: Trial) -> Charter:
    """Short phases, and half of the trainers at least in a slate."""
    founders = min(MAX_FOUNDERS, trial.trainer_count)
    return default_charter(
        name="simulation",
        nonce=hashlib.sha256(b"%d" % trial.seed).digest()[:16],
        founders=tuple(sorted(key_of(number).peer for number in range(founders))),
        base_name="none",
        base=bytes(32),
        tokenizer=bytes(32),
        layers=1,
        linears=(("q", 64, 64),),
        seed=bytes(32),
        rule=MergeRule.model_validate({"rule": trial.rule, "trim_percent": 20}).rule,
        train_milliseconds=TRAIN_MILLISECONDS,
        attest_milliseconds=ATTEST_MILLISECONDS,
        vote_milliseconds=VOTE_MILLISECONDS,
        min_deltas=max(2, trial.trainer_count // 2),
        admission="open",
        aged_rounds=0,
    )


def patience(charter: Charter, world: World) -> float:
    """Seconds within which a round closes on a healed network, whatever the Byzantine members do.

    Its phases at their longest; then every Byzantine member may be the proposer before an honest one is, and
    the attempts go on from where the faults left them.
    """
    timing = charter.timing
    first = max((peer.node.status().attempt for peer in world.honest if peer.node is not None), default=0)
    wasted = sum(not peer.is_honest for peer in world.peers[:64]) + 4
    votes = sum(3 * timing.vote * (1 + attempt) for attempt in range(first, first + wasted))
    return (timing.train + timing.attest + votes) / 1000 + 30.0
