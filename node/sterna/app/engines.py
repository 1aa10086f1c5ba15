"""Engines: where the trials of a grid run: in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from queue import SimpleQueue

from sterna.app.simulation import run_simulation
from sterna.errors import ConfigError, Unreachable
from sterna.simulate.grid import Engine, trial_of

ENGINES = ("local", "ray")


def engine_of(name: str, *, processes: int, address: str | None = None) -> Engine:
    """The engine called ``name``. ``address``: of the Ray cluster, None for one of this machine alone.

    Raises:
        ConfigError: unknown, or Ray is not installed.
    """
    if name == "local":
        return lambda lines: run_in_processes(lines, processes)
    if name == "ray":
        return lambda lines: run_on_ray(lines, address)
    raise ConfigError(f"--engine {name} is unknown: choose {', '.join(ENGINES)}")


def run_line(line: str) -> str:
    """Run the trial that a line of JSON describes; the result is a line of JSON."""
    options = json.loads(line)
    report = run_simulation(trial_of(options))
    return json.dumps({"options": options, "report": report.as_json()}, sort_keys=True)


def run_in_processes(lines: Sequence[str], processes: int) -> Iterator[str]:
    """Run the trials in that many processes, which read and write lines."""
    idle: SimpleQueue[subprocess.Popen[str]] = SimpleQueue()
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "sterna.app.engines"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            # A Ctrl-C is for the command alone, which then ends its processes.
            start_new_session=True,
            # Trials run side by side; none of them takes more than its own core.
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for _ in range(min(processes, len(lines)))
    ]
    for worker in workers:
        idle.put(worker)

    def run(line: str) -> str:
        worker = idle.get()
        try:
            assert worker.stdin is not None and worker.stdout is not None
            worker.stdin.write(line + "\n")
            result = worker.stdout.readline()
        except BrokenPipeError:
            result = ""
        finally:
            idle.put(worker)
        if not result:
            raise Unreachable(f"the process that ran this trial died: {line}")
        return result.rstrip("\n")

    try:
        with ThreadPoolExecutor(max(1, len(workers))) as pool:
            futures = [pool.submit(run, line) for line in lines]
            try:
                for future in as_completed(futures):
                    yield future.result()
            finally:
                for future in futures:
                    future.cancel()
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def run_on_ray(lines: Sequence[str], address: str | None) -> Iterator[str]:
    """Run the trials on a Ray cluster, one a CPU; its nodes need the same version of this package."""
    try:
        import ray
    except ImportError as error:
        raise ConfigError("--engine ray needs Ray: pip install 'sterna[ray]'") from error
    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init(address=address, include_dashboard=False, log_to_driver=False)
    try:
        remote = ray.remote(num_cpus=1)(run_line)
        waiting = [remote.remote(line) for line in lines]
        while waiting:
            ready, waiting = ray.wait(waiting, num_returns=1)
            yield from ray.get(ready)
    finally:
        if is_ours:
            ray.shutdown()


def main() -> None:
    """What a process of ``run_in_processes`` does until its input ends."""
    for line in sys.stdin:
        sys.stdout.write(run_line(line) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
