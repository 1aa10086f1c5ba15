"""What a node is busy with, for status displays."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Activity:
    """What the driver is busy with, and what its operator should know."""

    training: bool = False
    step: int = 0
    steps: int = 0
    loss: float | None = None
    trouble: str | None = None
    fork: str | None = None

    def errors(self) -> list[str]:
        """What the operator should know, the gravest first."""
        return [error for error in (self.fork, self.trouble) if error is not None]

    def note_step(self, step: int, steps: int, loss: float) -> None:
        """Take the progress of a training job."""
        self.step, self.steps, self.loss = step, steps, loss
