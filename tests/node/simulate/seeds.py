"""Many seeds of thirty nodes with every fault: python -m tests.node.simulate.seeds FIRST COUNT [FILE].

FILE holds one line of JSON a seed; seeds that it holds are not run again. As many processes as there are
cores; ``compiled.py`` beside this file says how to take less than two thirds of the time.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from sterna.simulate.faults import Faults
from sterna.simulate.trial import Trial, run_trial

BAD = Faults(loss=0.2, duplicate=0.1, partition=0.5, crash=0.1, skew=0.05)


def trial(seed: int, rounds: int = 10) -> Trial:
    # Rule and trim are part of the charter, and so of the trace.
    return Trial(
        peers=30,
        rounds=rounds,
        seed=seed,
        trainers=12,
        byzantine=0.3,
        rule="mean",
        trim=20,
        faults=BAD,
    )


def row(seed: int, rounds: int = 10) -> dict[str, Any]:
    report = run_trial(trial(seed, rounds))
    if not report.is_good:
        sys.stdout.write(f"{report.command}\n  {report.violations}\n")
        sys.stdout.flush()
    return {
        "seed": seed,
        "violations": report.violations,
        "beyond_tolerance": report.beyond_tolerance,
        "events": report.events,
        "seconds": round(report.seconds, 2),
        "trace_digest": report.trace_digest,
    }


def main(first: int, count: int, file: Path | None = None) -> int:
    done = read(file) if file is not None and file.exists() else {}
    seeds = range(first, first + count)
    with ProcessPoolExecutor() as pool:
        runs = [pool.submit(row, seed) for seed in seeds if seed not in done]
        for run in as_completed(runs):
            found = run.result()
            done[found["seed"]] = found
            if file is not None:
                with file.open("a") as lines:
                    lines.write(json.dumps(found) + "\n")
    rows = [done[seed] for seed in seeds]
    beyond = [row for row in rows if row["beyond_tolerance"] is not None]
    stopped = sum(bool(row["violations"]) for row in beyond)
    broken = sum(bool(row["violations"]) for row in rows) - stopped
    events, seconds = sum(row["events"] for row in rows), sum(row["seconds"] for row in rows)
    sys.stdout.write(
        f"{count} seeds: {broken} broken, {len(beyond)} beyond tolerance ({stopped} of them stopped), "
        f"{events} events, {seconds:.0f} s CPU\n"
    )
    return 1 if broken else 0


def read(file: Path) -> dict[int, dict[str, Any]]:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return {row["seed"]: row for row in rows}


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), *map(Path, sys.argv[3:4])))
