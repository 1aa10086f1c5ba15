"""Faults: how bad network and machines are while a run lasts."""

from __future__ import annotations

from dataclasses import dataclass

from sterna.errors import ConfigError

MAX_LOSS = 0.9
"""Above that hardly a request and its response both arrive."""

MAX_PARTITION = 0.9
MAX_CRASH = 1.0
MAX_SKEW = 0.5
"""Clocks that run half or one and a half as fast; real ones are within 0.0001."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Shares are of messages for ``loss`` and ``duplicate``, of the time for ``partition``.

    Args:
        latency: mean seconds that a message takes; messages overtake each other freely.
        crash: how likely a node crashes in one round; it comes back with what its disk held.
        skew: how much faster or slower than the world a clock may run.

    Raises:
        ConfigError: a value is out of its range.
    """

    latency: float = 0.05
    loss: float = 0.0
    duplicate: float = 0.0
    partition: float = 0.0
    crash: float = 0.0
    skew: float = 0.0

    def __post_init__(self) -> None:
        for name, value, most in (
            ("latency", self.latency, 10.0),
            ("loss", self.loss, MAX_LOSS),
            ("duplicate", self.duplicate, 1.0),
            ("partition", self.partition, MAX_PARTITION),
            ("crash", self.crash, MAX_CRASH),
            ("skew", self.skew, MAX_SKEW),
        ):
            if not 0.0 <= value <= most:
                raise ConfigError(f"--{name} {value:g} is out of range: give 0 to {most:g}")
