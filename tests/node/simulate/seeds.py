"""Many seeds of thirty nodes with every fault: python -m tests.node.simulate.seeds FIRST COUNT."""

from __future__ import annotations

import sys

from sterna.simulate.faults import Faults
from sterna.simulate.trial import Trial, run_trial

BAD = Faults(loss=0.2, duplicate=0.1, partition=0.5, crash=0.1, skew=0.05)


def main(first: int, count: int) -> int:
    broken, beyond, seconds, events = 0, 0, 0.0, 0
    for seed in range(first, first + count):
        report = run_trial(Trial(peers=30, rounds=10, seed=seed, trainers=12, byzantine=0.3, faults=BAD))
        seconds, events = seconds + report.seconds, events + report.events
        beyond += report.beyond_tolerance is not None
        if not report.is_good:
            broken += 1
            sys.stdout.write(f"{report.command}\n  {report.violations}\n")
        sys.stdout.flush()
    sys.stdout.write(
        f"{count} seeds: {broken} broken, {beyond} beyond tolerance, {events} events, {seconds:.0f} s CPU\n"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
