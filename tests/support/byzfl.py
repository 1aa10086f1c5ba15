"""byzfl's robust rules and attacks as an oracle, without the half of byzfl that needs torchvision.

``import byzfl`` loads ``byzfl.benchmark``, which imports torchvision; torchvision is no dependency of this
project, and the one that pip finds beside a CPU build of torch makes transformers and peft fail. A bare
package object with byzfl's path takes its place, so that only ``aggregators`` and ``attacks`` run.

Traps of byzfl 0.0.11: ``CenteredClipping`` keeps state between calls; ``ARC`` writes into its argument;
``CAF``, ``Bucketing`` and ``SMEA`` draw from the global random state; ``NNM`` breaks ties by place.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType

if "byzfl" not in sys.modules:
    found = find_spec("byzfl")
    if found is None or found.submodule_search_locations is None:
        raise ModuleNotFoundError("byzfl is not installed: make setup installs it")
    package = ModuleType("byzfl")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["byzfl"] = package

from byzfl.aggregators import CAF, NNM, Average, Clipping, Median, TrMean
from byzfl.attacks import (
    ALittleIsEnough,
    InnerProductManipulation,
    Mimic,
    Optimal_ALittleIsEnough,
    Optimal_InnerProductManipulation,
    SignFlipping,
)

__all__ = [
    "CAF",
    "NNM",
    "ALittleIsEnough",
    "Average",
    "Clipping",
    "InnerProductManipulation",
    "Median",
    "Mimic",
    "Optimal_ALittleIsEnough",
    "Optimal_InnerProductManipulation",
    "SignFlipping",
    "TrMean",
]
