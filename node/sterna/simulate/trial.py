"""One trial: a swarm cast from a seed, faults until most rounds are closed, then a healed network."""

from __future__ import annotations

import gc
import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from sterna.errors import ConfigError
from sterna.simulate.attacks import ATTACKS, CROWD, DRAWN, MIXED, Attack
from sterna.simulate.classroom import Classroom, Trainer, taught_in_one_room
from sterna.simulate.dice import Dice
from sterna.simulate.faults import Faults
from sterna.simulate.learning import GENESIS_ADAPTER, Synthetic
from sterna.simulate.peer import key_of
from sterna.simulate.poison import POISONS
from sterna.simulate.report import Learned, Report
from sterna.simulate.world import Casting, World
from sterna_protocol.swarm.charter import MAX_FOUNDERS, Charter, MergeRule, Recipe
from sterna_protocol.swarm.defaults import RULE, TRIM_PERCENT, default_charter

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

MAX_TRIM_PERCENT = 45

RECIPE = Recipe(
    steps=6, sequences_per_step=2, tokens_per_sequence=32, learning_rate_micros=32_000, warmup_steps=1
)
"""A round of a peer that learns: 384 tokens, so that a swarm of twenty takes seconds."""

RULES: tuple[str, ...] = get_args(MergeRule.model_fields["rule"].annotation)


Sharing = Literal["dirichlet", "source"]
"""How peers share the texts: in uneven proportions, or each from one text."""


Entrance = Literal["trust", "invite", "open"]

AGED_ROUNDS = 3
"""Merged rounds after which a stranger of an open swarm counts in full: within a trial, some do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """All that a run depends on.

    Args:
        trainers: peers that train and may come into the committee; None: all, 40 at most.
        byzantine: share of the peers that attack, drawn among those who train and those who do not alike.
        admission: ``trust``: anybody, at once in full; ``open`` and ``invite``: as in a charter.
        attack: one of ``ATTACKS``, ``mixed``, or where peers learn, one of ``POISONS``.
        trim: what the rules that trim cut at each end, per cent of the slate.
        base: what peers train over; None: they do not learn, and deltas are synthetic.
        sharing: how they share the texts.

    Raises:
        ConfigError: a value is out of its range.
    """

    peers: int
    rounds: int
    seed: int
    trainers: int | None = None
    byzantine: float = 0.0
    attack: str = MIXED
    rule: str = RULE
    trim: int = TRIM_PERCENT
    admission: Entrance = "trust"
    base: str | None = None
    sharing: Sharing = "dirichlet"
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
        if self.attack in POISONS and self.base is None:
            raise ConfigError(f"--attack {self.attack} poisons what peers learn: give --learning on")
        if self.attack not in (MIXED, *ATTACKS, *POISONS):
            known = ", ".join((MIXED, *ATTACKS, *POISONS))
            raise ConfigError(f"--attack {self.attack} is unknown: choose {known}")
        if self.admission not in get_args(Entrance):
            raise ConfigError(
                f"--admission {self.admission} is unknown: choose {', '.join(get_args(Entrance))}"
            )
        if self.attack == CROWD and self.admission == "trust":
            raise ConfigError(f"--attack {CROWD} needs a door: give --admission invite or open")
        if self.byzantine and not cast(self).attacks:
            raise ConfigError(
                f"--byzantine {self.byzantine:g} makes none of {self.peers} peers attack: give a larger share"
            )
        if not 0 <= self.trim <= MAX_TRIM_PERCENT:
            raise ConfigError(f"--trim {self.trim} is out of range: give 0 to {MAX_TRIM_PERCENT}")
        if self.sharing not in get_args(Sharing):
            raise ConfigError(f"--sharing {self.sharing} is unknown: choose {', '.join(get_args(Sharing))}")
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
        if self.byzantine and self.attack != MIXED:
            words.append(f"--attack {self.attack}")
        if self.rule != RULE:
            words.append(f"--rule {self.rule}")
        if self.trim != TRIM_PERCENT:
            words.append(f"--trim {self.trim}")
        if self.admission != "trust":
            words.append(f"--admission {self.admission}")
        if self.base is not None:
            words.append(f"--learning on --base {self.base} --sharing {self.sharing}")
        return " ".join(words)


@contextmanager
def _rarely_collected() -> Iterator[None]:
    """What a run allocates goes when nobody holds it: a collector that looks often finds next to nothing."""
    before = gc.get_threshold()
    gc.set_threshold(200_000, 50, 1000)
    try:
        yield
    finally:
        gc.set_threshold(*before)


@_rarely_collected()
def run_trial(
    trial: Trial,
    trainer: Trainer | None = None,
    *,
    loss_clean: float | None = None,
    every_round: bool = False,
) -> Report:
    """What became of the swarm; the same for the same trial, but for ``seconds``.

    Args:
        trainer: trains the peers; None where ``trial`` has no base.
        loss_clean: ``clean_loss`` of this trial, where it is known already.
        every_round: report the loss after each round, not the last alone.
    """
    started = time.process_time()
    casting = cast(trial)
    charter = charter_of(trial, trainer)
    classroom = None
    if trainer is not None:
        classroom = Classroom(trainer, charter, peers=trial.trainer_count, poisons=casting.poisons)
    world = World(trial.seed, casting, charter, trial.faults, classroom or Synthetic())
    invariants = world.invariants
    sick_rounds = trial.rounds - HEALED_ROUNDS
    sick_seconds = SICK_SECONDS_PER_ROUND * max(1, sick_rounds)
    if sick_rounds > 0:
        world.run(lambda: world.closed_by_all() >= sick_rounds, sick_seconds)
    world.heal()
    healed_at = world.now
    longest = max(len(peer.disk.certificates) for peer in world.honest)
    goal = max(trial.rounds, longest + HEALED_ROUNDS)
    # Liars who can stop a round for ever either do, or close each as the others would.
    missing = 1 if invariants.may_be_stopped else goal - world.closed_by_all()
    limit = healed_at + missing * patience(charter, world)
    world.run(lambda: world.closed_by_all() >= goal, limit)
    invariants.ends()
    if not invariants.violations and world.closed_by_all() < goal:
        standing = [len(peer.disk.certificates) for peer in world.honest]
        invariants.broken(
            f"no progress: {min(standing)} to {max(standing)} rounds closed {world.now - healed_at:.0f} s "
            f"after the network healed, {goal} expected"
        )
    was_sick = trial.faults != Faults(latency=trial.faults.latency)
    learned = None
    if trainer is not None and classroom is not None:
        adapters = [decision.adapter for decision in invariants.decided[: trial.rounds]]
        losses = [classroom.loss(adapter) for adapter in (adapters if every_round else adapters[-1:])]
        learned = Learned(
            rule=trial.rule,
            attack=trial.attack if trial.byzantine else None,
            loss_before=classroom.loss(GENESIS_ADAPTER),
            loss_clean=clean_loss(trial, trainer) if loss_clean is None else loss_clean,
            losses=tuple(losses),
        )
    return Report.of(
        trial,
        world,
        healed_at=healed_at if was_sick else None,
        learned=learned,
        seconds=time.process_time() - started,
    )


def clean_loss(trial: Trial, trainer: Trainer) -> float:
    """The loss where every peer is honest and reached by all, and the mean of all deltas is taken."""
    charter = charter_of(replace(trial, rule="mean"), trainer)
    classroom = Classroom(trainer, charter, peers=trial.trainer_count, poisons={})
    return classroom.loss(taught_in_one_room(classroom, trial.trainer_count, trial.rounds)[-1])


def cast(trial: Trial) -> Casting:
    """Draw who attacks, and how: of those who train, and of the rest, the same share, rounded down.

    Who poisons must train. Of the founders at most the same share does, so that the first committee holds.
    """
    dice = Dice(trial.seed, "casting")
    trainers = trial.trainer_count
    founders = min(MAX_FOUNDERS, trainers)
    if trial.attack in POISONS:
        of_founders = int(trial.byzantine * founders)
        others = int(trial.byzantine * trainers) - of_founders
        liars = dice.shuffled(range(founders))[:of_founders]
        liars += dice.shuffled(range(founders, trainers))[:others]
        harmless = dict.fromkeys(sorted(liars), Attack())
        return Casting(trial.peers, trainers, harmless, dict.fromkeys(sorted(liars), trial.attack))
    attacks: dict[int, Attack] = {}
    for group in (range(founders), range(founders, trainers), range(trainers, trial.peers)):
        liars = dice.shuffled(group)[: int(trial.byzantine * len(group))]
        for number in sorted(liars):
            name = dice.pick(DRAWN) if trial.attack == MIXED else trial.attack
            attacks[number] = ATTACKS[name]
    return Casting(trial.peers, trainers, attacks)


def charter_of(trial: Trial, trainer: Trainer | None = None) -> Charter:
    """Short phases, and half of the trainers at least in a slate."""
    if (trainer is None) != (trial.base is None):
        raise ValueError("a trial with a base needs a trainer, and no other does")
    founders = min(MAX_FOUNDERS, trial.trainer_count)
    charter = default_charter(
        name="simulation",
        nonce=hashlib.sha256(b"%d" % trial.seed).digest()[:16],
        founders=tuple(sorted(key_of(number).peer for number in range(founders))),
        base_name=trial.base or "none",
        base=bytes(32),
        tokenizer=bytes(32),
        layers=1 if trainer is None else trainer.layers,
        linears=(("q", 64, 64),) if trainer is None else trainer.linears,
        seed=bytes(32) if trainer is None else hashlib.sha256(b"adapter %d" % trial.seed).digest(),
        rule=MergeRule.model_validate({"rule": trial.rule, "trim_percent": trial.trim}).rule,
        trim_percent=trial.trim,
        train_milliseconds=TRAIN_MILLISECONDS,
        attest_milliseconds=ATTEST_MILLISECONDS,
        vote_milliseconds=VOTE_MILLISECONDS,
        # A round lets four peers in at most, and in an open swarm strangers have few places.
        min_deltas=max(2, (trial.trainer_count if trial.admission == "trust" else founders) // 2),
        admission="invite" if trial.admission == "invite" else "open",
        aged_rounds=0 if trial.admission == "trust" else AGED_ROUNDS,
    )
    return charter if trainer is None else charter.model_copy(update={"recipe": RECIPE})


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
