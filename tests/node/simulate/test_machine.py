"""Anything in any order: frames delivered, lost, doubled, peers cut off, crashed, lying; failures shrink."""

from __future__ import annotations

import heapq

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sterna.simulate.attacks import EVERY_KIND, Attack, faces
from sterna.simulate.faults import Faults
from sterna.simulate.learning import Synthetic
from sterna.simulate.trial import HEALED_ROUNDS, Trial, charter_of, patience
from sterna.simulate.world import Casting, Event, World

PEERS = 4
LIAR = PEERS - 1
numbers = st.integers(0, PEERS - 1)
anything = st.integers(0, 1 << 16)
TWO_FACED = Attack(two_faced=EVERY_KIND)


class Swarm(RuleBasedStateMachine):
    """Four members of which one may lie; time passes only when a rule says so.

    The order of messages, and which arrive, is hypothesis' choice, and so is what the liar says to whom. The
    rest is the simulator's world, with its invariants.
    """

    world: World

    @initialize(seed=st.integers(0, 1 << 16), lies=st.booleans())
    def found(self, seed: int, lies: bool) -> None:
        trial = Trial(peers=PEERS, rounds=1, seed=seed)
        casting = Casting(PEERS, PEERS, {LIAR: "lie"} if lies else {})
        self.charter = charter_of(trial)
        self.world = World(seed, casting, self.charter, Faults(), Synthetic())
        if lies:
            # Its own node is honest: what it says beside is up to the rules.
            self.world.peers[LIAR].attack = Attack()

    @property
    def frames(self) -> list[Event]:
        """Gossip under way, the earliest first."""
        return [event for event in sorted(self.world.queue) if event[4] == self.world.traffic.deliver]

    def take(self, which: int) -> Event | None:
        """Take a frame out of the network."""
        frames = self.frames
        if not frames:
            return None
        event = frames[which % len(frames)]
        self.world.queue.remove(event)
        heapq.heapify(self.world.queue)
        return event

    # What may happen

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 20.0]))
    def tick(self, seconds: float) -> None:
        """All goes its way for a while: training ends, timers fire, heads are exchanged, frames arrive."""
        end = self.world.now + seconds
        self.world.run(lambda: False, end)
        self.world.now = max(self.world.now, end)

    @rule(which=anything)
    def deliver(self, which: int) -> None:
        if (event := self.take(which)) is not None:
            self.world.happen((self.world.now, *event[1:]))

    @rule(which=anything, several=st.integers(1, 8))
    def drop(self, which: int, several: int) -> None:
        for _ in range(several):
            self.take(which)

    @rule(which=anything)
    def duplicate(self, which: int) -> None:
        if (event := self.take(which)) is not None:
            self.world.happen((self.world.now, *event[1:]))
            self.world.happen((self.world.now, *event[1:]))

    @rule(side=st.lists(st.integers(0, 1), min_size=PEERS, max_size=PEERS))
    def partition(self, side: list[int]) -> None:
        self.world.network.side = side
        self.world.notice_all()

    @rule()
    def heal(self) -> None:
        self.world.network.side = None
        self.world.notice_all()

    @rule(number=numbers, effects=st.integers(1, 12))
    def crash(self, number: int, effects: int) -> None:
        """A peer dies between two of its next effects, and boots again with what its disk holds."""
        self.world.peers[number].crash_after = effects

    @precondition(lambda self: not self.world.peers[LIAR].is_honest)
    @rule(which=anything, face=anything, shown=st.lists(st.booleans(), min_size=LIAR, max_size=LIAR))
    def equivocate(self, which: int, face: int, shown: list[bool]) -> None:
        """The liar shows some of the others something else than what it said, in whatever place."""
        liar = self.world.peers[LIAR]
        frames = [frame for (_, _, kind), frame in liar.disk.own.items() if kind]
        if not frames:
            return
        frame, adapter = frames[which % len(frames)], liar.disk.adapter()
        lies = faces(TWO_FACED, liar.key, frame, self.world.traffic.gossip, adapter)
        for other, is_shown in zip(self.world.honest, shown, strict=True):
            if is_shown:
                self.world.traffic.transmit(liar, other, lies[face % len(lies)])

    # What must hold

    @invariant()
    def nothing_is_broken(self) -> None:
        assert self.world.invariants.violations == []

    def teardown(self) -> None:
        """On a healed network all honest peers come to the same chain within two rounds."""
        world = self.world
        if world.invariants.violations:
            return
        world.heal()
        longest = max(len(peer.disk.certificates) for peer in world.honest)
        goal = longest + HEALED_ROUNDS
        limit = world.now + (goal - world.closed_by_all()) * patience(self.charter, world)
        world.run(lambda: world.closed_by_all() >= goal, limit)
        world.invariants.ends()
        assert world.invariants.violations == []
        assert world.closed_by_all() >= goal


Swarm.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestAnyOrder = pytest.mark.slow(Swarm.TestCase)
