"""Simulated swarms that really learn: the simulator meets the trainer, over the shipped texts."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from sterna.app.demo.samples import sample_texts
from sterna.app.founding import find_base
from sterna.simulate.report import Report
from sterna.simulate.trial import Sharing, Trial, run_trial

if TYPE_CHECKING:
    from sterna.train.crowd import Crowd


def run_simulation(trial: Trial, *, every_round: bool = False) -> Report:
    """``run_trial`` with the trainer that the trial asks for.

    Args:
        every_round: report the loss after each round, where peers learn.

    Raises:
        ConfigError: there is no such base.
    """
    if trial.base is None:
        return run_trial(trial)
    crowd = _crowd(trial.base, trial.trainer_count, trial.sharing, trial.seed)
    return run_trial(trial, crowd, every_round=every_round)


@lru_cache(maxsize=1)
def _crowd(base: str, peers: int, sharing: Sharing, seed: int) -> Crowd:
    """Trials of one seed share the texts as they were cut for the first."""
    # torch takes seconds to load, and most simulations learn nothing.
    from sterna.train.crowd import Crowd

    return Crowd(find_base(base).base, sample_texts(), peers=peers, sharing=sharing, seed=seed)
