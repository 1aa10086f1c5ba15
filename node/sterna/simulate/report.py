"""The report of one trial, for people and for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from sterna.simulate.world import World

if TYPE_CHECKING:
    from sterna.simulate.trial import Trial

NOT_PROMISED = (
    "that rounds close",
    "one decision a round",
    "that what is merged was sent by its author and attested by honest members",
)
"""What liars can break who are a third of a committee or more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What a swarm learned, in nats per token on text that nobody trained on.

    ``loss_before``: of the base alone; ``loss_clean``: where nobody attacks and the mean is taken;
    ``losses``: after each round, or the last alone; ``attack``: None where there is none.
    """

    rule: str
    attack: str | None
    loss_before: float
    loss_clean: float
    losses: tuple[float, ...]

    @property
    def loss_final(self) -> float:
        return self.losses[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What became of a swarm.

    ``certified_rounds``: closed by every honest peer, ``void_rounds`` of them without a slate. ``closed_at``:
    virtual time at which the first honest peer closed each; ``healed_at``: at which the faults ended.
    ``messages_per_node`` and ``bytes_per_node``: sent in the whole run on average, gossip and sync, without
    blobs. ``seconds``: CPU time of the run.
    ``learned``: None where deltas are synthetic.
    ``beyond_tolerance``: the first round whose committee had too many Byzantine members for the protocol to
    promise anything, None if there is none. ``proven``: peers that evidence names. ``command`` runs it again.
    """

    seed: int
    peers: int
    certified_rounds: int
    void_rounds: int
    forks: int
    violations: tuple[str, ...]
    beyond_tolerance: int | None
    byzantine: int
    proven: int
    trace_digest: str
    events: int
    seconds: float
    virtual_seconds: float
    healed_at: float | None
    messages_per_node: float
    bytes_per_node: float
    messages_by_node: tuple[int, ...]
    bytes_by_node: tuple[int, ...]
    closed_at: tuple[float, ...]
    learned: Learned | None
    command: str

    @classmethod
    def of(
        cls,
        trial: Trial,
        world: World,
        *,
        healed_at: float | None,
        learned: Learned | None,
        seconds: float,
    ) -> Self:
        certified = world.closed_by_all()
        messages = tuple(peer.messages for peer in world.peers)
        sizes = tuple(peer.bytes for peer in world.peers)
        closed = [
            min(peer.closed[round_] for peer in world.honest if round_ in peer.closed)
            for round_ in range(1, certified + 1)
        ]
        invariants = world.invariants
        return cls(
            seed=trial.seed,
            peers=trial.peers,
            certified_rounds=certified,
            void_rounds=sum(decision.is_void for decision in invariants.decided[:certified]),
            forks=invariants.forks,
            violations=tuple(invariants.violations),
            beyond_tolerance=invariants.beyond_tolerance,
            byzantine=len(world.peers) - len(world.honest),
            proven=len(invariants.proven),
            trace_digest=world.trace.hexdigest(),
            events=world.trace.events,
            seconds=seconds,
            virtual_seconds=world.now,
            healed_at=healed_at,
            messages_per_node=sum(messages) / len(messages),
            bytes_per_node=sum(sizes) / len(sizes),
            messages_by_node=messages,
            bytes_by_node=sizes,
            closed_at=tuple(closed),
            learned=learned,
            command=trial.command(),
        )

    @property
    def is_good(self) -> bool:
        return not self.violations

    @property
    def not_promised(self) -> tuple[str, ...]:
        """What the protocol did not promise in this run, for it had too many Byzantine members."""
        return () if self.beyond_tolerance is None else NOT_PROMISED

    def as_json(self) -> dict[str, Any]:
        """All fields; the lists by node only where there are few nodes, losses only where peers learned."""
        fields = asdict(self)
        del fields["learned"]
        if self.learned is not None:
            fields |= asdict(self.learned) | {"loss_final": self.learned.loss_final}
        fields["not_promised"] = self.not_promised
        rounds = max(1, self.certified_rounds)
        fields["messages_per_node_and_round"] = self.messages_per_node / rounds
        fields["bytes_per_node_and_round"] = self.bytes_per_node / rounds
        if self.peers > 64:
            del fields["messages_by_node"], fields["bytes_by_node"]
        return fields
