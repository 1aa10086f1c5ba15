"""A simulation that names nothing runs what a founder who names nothing founds."""

from __future__ import annotations

from sterna.simulate.trial import Trial, charter_of
from sterna_protocol.swarm.defaults import default_charter


def test_a_trial_merges_and_filters_as_a_swarm_does_by_default():
    founded = default_charter(
        name="swarm",
        nonce=bytes(16),
        founders=(bytes(32),),
        base_name="none",
        base=bytes(32),
        tokenizer=bytes(32),
        layers=1,
        linears=(("q", 64, 64),),
        seed=bytes(32),
    )
    simulated = charter_of(Trial(peers=4, rounds=1, seed=1))
    assert (simulated.merge, simulated.codec, simulated.quorum) == (
        founded.merge,
        founded.codec,
        founded.quorum,
    )
    assert simulated.adapter.scheme == founded.adapter.scheme
