"""The trials of averaging.py: each is one way to learn together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One way to learn together.

    Attributes:
        scheme: of the charter; "svd" trains as ``pair`` and cuts the mean of B A back to the rank.
        codec: of the charter, or "fp32" for deltas as they are.
        feedback: what the codec lost is added to the same peer's next delta of the same subspace.
        unbiased: a ternary delta keeps its length along the values instead of losing least of them.
        overshoot: what is sent stands for this times what there is to send; feedback takes the rest back.
        momentum: of the outer step, Nesterov's; 0 adds the mean as it is.
        outer_rate: multiplies the outer step.
        along_inputs: A follows what goes into each linear (averaging_directions.py) in place of the seed.
        tuned_as: the trial whose learning rate this one takes; "" or itself for one of its own.
    """

    scheme: Literal["cycle", "fixed", "pair", "svd", "central"]
    rank: int = 8
    subspaces: int = 1
    codec: str = "fp32"
    feedback: bool = False
    unbiased: bool = False
    overshoot: float = 1.0
    momentum: float = 0.0
    outer_rate: float = 1.0
    along_inputs: bool = False
    tuned_as: str = ""


def _cycle(
    subspaces: int,
    codec: str,
    *,
    feedback: bool = False,
    unbiased: bool = False,
    overshoot: float = 1.0,
    outer_rate: float = 1.0,
    along_inputs: bool = False,
) -> Trial:
    return Trial(
        scheme="cycle",
        along_inputs=along_inputs,
        subspaces=subspaces,
        codec=codec,
        feedback=feedback,
        unbiased=unbiased,
        overshoot=overshoot,
        outer_rate=outer_rate,
        tuned_as="cycle K=4",
    )


def _fixed(codec: str, *, rank: int = 8, feedback: bool = False, overshoot: float = 1.0) -> Trial:
    return Trial(
        scheme="fixed",
        rank=rank,
        codec=codec,
        feedback=feedback,
        overshoot=overshoot,
        tuned_as="cycle K=4",
    )


# The trials without a codec come first of their kind: the others take their learning rates.
TRIALS = {
    "cycle K=4": _cycle(4, "fp32"),
    "cycle K=4 ternary": _cycle(4, "ternary"),
    "pair": Trial(scheme="pair"),
    "central": Trial(scheme="central"),
    "pair momentum": Trial(scheme="pair", momentum=0.9, outer_rate=0.7),
    "cycle K=8 ternary": _cycle(8, "ternary"),
    "svd": Trial(scheme="svd"),
    "fixed r=8": _fixed("fp32"),
    "fixed r=8 ternary": _fixed("ternary"),
    "fixed r=8 ternary feedback": _fixed("ternary", feedback=True),
    "fixed r=16 ternary": _fixed("ternary", rank=16),
    "fixed r=32 ternary": _fixed("ternary", rank=32),
    "pair ternary": Trial(scheme="pair", codec="ternary", tuned_as="pair"),
    "cycle K=4 momentum": Trial(scheme="cycle", subspaces=4, momentum=0.9, outer_rate=0.7),
    "cycle K=4 int8": _cycle(4, "int8"),
    "cycle K=4 int4": _cycle(4, "int4"),
    "cycle K=4 ternary feedback": _cycle(4, "ternary", feedback=True),
    "cycle K=4 ternary unbiased": _cycle(4, "ternary", unbiased=True),
    "cycle K=4 ternary unbiased outer 1.5": _cycle(4, "ternary", unbiased=True, outer_rate=1.5),
    "cycle K=4 along inputs": _cycle(4, "fp32", along_inputs=True),
    "cycle K=4 ternary along inputs": _cycle(4, "ternary", along_inputs=True),
    "cycle K=4 outer 1.5": _cycle(4, "fp32", outer_rate=1.5),
    "cycle K=4 top2": _cycle(4, "top2"),
    "cycle K=4 top2 feedback": _cycle(4, "top2", feedback=True),
    "cycle K=4 top2 overshoot": _cycle(4, "top2", feedback=True, overshoot=1.5),
    "cycle K=4 top2 overshoot 2": _cycle(4, "top2", feedback=True, overshoot=2.0),
    "cycle K=4 top2 overshoot 4": _cycle(4, "top2", feedback=True, overshoot=4.0),
    "cycle K=2 top2 overshoot 2": _cycle(2, "top2", feedback=True, overshoot=2.0),
    "fixed r=8 top2 feedback": _fixed("top2", feedback=True),
    "fixed r=8 top2 overshoot": _fixed("top2", feedback=True, overshoot=1.5),
    "fixed r=8 top2 overshoot 1.75": _fixed("top2", feedback=True, overshoot=1.75),
    "fixed r=8 top2 overshoot 2": _fixed("top2", feedback=True, overshoot=2.0),
    "fixed r=8 top2 overshoot 3": _fixed("top2", feedback=True, overshoot=3.0),
}
