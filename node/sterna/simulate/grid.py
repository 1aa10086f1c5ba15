"""Grids: one TOML file says which trials to run, each of all its combinations, and what came of each is kept.

::

    [trial]                          # what all trials have in common: options of `sterna simulate`
    peers = 30
    loss = 0.2

    [grid]                           # options with several values each: every combination is a trial
    attack = ["silent", "lie"]
    byzantine = [0.1, 0.3]
    seed = [1, 2, 3]

A trial is plain JSON on its way to a process and back. Results are lines of JSON in a file next to the grid;
what stands in it is not run again.
"""

from __future__ import annotations

import difflib
import itertools
import json
import math
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from sterna.errors import ConfigError
from sterna.simulate.faults import Faults
from sterna.simulate.trial import Trial

MAX_TRIALS = 100_000
"""Of one grid: as many lines as a table still makes sense of."""

Options = dict[str, Any]
"""Options of `sterna simulate` by name, with ``_`` for ``-``."""

Engine = Callable[[Sequence[str]], Iterable[str]]
"""Runs the trial of each line of JSON, several at a time; gives the results as they come, in any order."""

SMALLEST_BASE = "tiny"
"""What peers train over that learn, unless told otherwise."""

FAULTS = frozenset(field.name for field in fields(Faults))

Kind = tuple[str, tuple[type, ...]]
_WHOLE: Kind = ("a whole number", (int,))
_NUMBER: Kind = ("a number", (int, float))
_WORD: Kind = ("a word in quotes", (str,))
_KINDS_OF_FIELDS = {"int": _WHOLE, "int | None": _WHOLE, "float": _NUMBER}
KINDS: dict[str, Kind] = {
    field.name: _KINDS_OF_FIELDS.get(str(field.type), _WORD)
    for field in (*fields(Trial), *fields(Faults))
    if field.name != "faults"
} | {"learning": _WORD}
"""What each option takes, in words and as TOML gives it."""


def read_grid(path: Path) -> list[Options]:
    """The trials of a grid file, in order.

    Raises:
        ConfigError: the file cannot be read, or an option is unknown or out of range.
    """
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"--grid {path} cannot be read: {error}") from error
    try:
        return _trials(content)
    except ConfigError as error:
        raise ConfigError(f"--grid {path}: {error}") from error


def _trials(content: Options) -> list[Options]:
    if unknown := sorted(content.keys() - {"trial", "grid"}):
        raise ConfigError(f"unknown table [{unknown[0]}]: use [trial] and [grid]")
    common, varied = content.get("trial", {}), content.get("grid", {})
    for table, options in (("trial", common), ("grid", varied)):
        if not isinstance(options, dict):
            raise ConfigError(f"{table} must be a table: begin it with a line [{table}]")
    for name, value in common.items():
        _require_kind("trial", name, value)
    for name, values in varied.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"[grid] {name} must be a list of values")
        for value in values:
            _require_kind("grid", name, value)
    count = math.prod(len(values) for values in varied.values())
    if count > MAX_TRIALS:
        raise ConfigError(f"{count} trials, the limit is {MAX_TRIALS}: split the file")
    trials = [
        {**common, **dict(zip(varied, values, strict=True))} for values in itertools.product(*varied.values())
    ]
    made = [trial_of(options) for options in trials]
    if any(name in trials[0] for name in ("base", "sharing")) and not any(trial.base for trial in made):
        raise ConfigError('base and sharing do nothing where nobody learns: add learning = "on"')
    if "attack" in trials[0] and not any(trial.byzantine for trial in made):
        raise ConfigError("attack does nothing where nobody attacks: add byzantine = SHARE")
    return trials


def _require_kind(table: str, name: str, value: object) -> None:
    """Return if ``value`` is of the kind that the option ``name`` takes."""
    if name not in KINDS:
        near = difflib.get_close_matches(name, KINDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose of {', '.join(sorted(KINDS))}"
        raise ConfigError(f"[{table}] {name} is no option: {hint}")
    expected, kinds = KINDS[name]
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise ConfigError(f"[{table}] {name} is {value!r}: give {expected}")


def trial_of(options: Options) -> Trial:
    """The trial that ``options`` describe; ``peers``, ``rounds`` and ``seed`` are as in `sterna simulate`.

    Raises:
        ConfigError: a value is out of range.
    """
    faults = {name: value for name, value in options.items() if name in FAULTS}
    rest = {name: value for name, value in options.items() if name not in FAULTS}
    learning = rest.pop("learning", "off")
    if learning not in ("on", "off"):
        raise ConfigError(f"learning is {learning!r}: give on or off")
    rest["base"] = rest.get("base", SMALLEST_BASE) if learning == "on" else None
    return Trial(**({"peers": 30, "rounds": 10, "seed": 1} | rest), faults=Faults(**faults))


def run_grid(trials: Sequence[Options], results: Path, engine: Engine) -> Iterator[Options]:
    """Run what ``results`` does not hold yet; yields each new result once it is written.

    Raises:
        ConfigError: ``results`` holds something else, or cannot be written.
    """
    done = {key_of(row["options"]) for row in read_results(results)}
    lines = [json.dumps(options, sort_keys=True) for options in trials if key_of(options) not in done]
    try:
        with results.open("a") as file:
            for line in engine(lines):
                file.write(line + "\n")
                file.flush()
                row: Options = json.loads(line)
                yield row
    except OSError as error:
        raise ConfigError(f"results {results} cannot be written: {error}") from error


def read_results(path: Path) -> list[Options]:
    """The results in a file, none if it does not exist. A last line that was cut off is left out."""
    try:
        text = path.read_text() if path.exists() else ""
        cut = text.rfind("\n") + 1
        if cut < len(text):
            path.write_text(text[:cut])
        rows = [json.loads(line) for line in text[:cut].splitlines()]
        if any(not isinstance(row, dict) or row.keys() != {"options", "report"} for row in rows):
            raise ValueError("a line is no result of a trial")
    except (OSError, ValueError) as error:
        raise ConfigError(f"results {path} cannot be read: {error}: move the file away") from error
    return rows


def key_of(options: Options) -> str:
    """The same for the same options in any order."""
    return json.dumps(options, sort_keys=True)


def summarise(trials: Sequence[Options], rows: Iterable[Options]) -> list[Options]:
    """One row for all seeds of a combination, in the order of the grid: what varies, then what came of it."""
    by_key = {key_of(row["options"]): row["report"] for row in rows}
    varied = [
        name
        for name in dict.fromkeys(name for options in trials for name in options)
        if name != "seed" and len({json.dumps(options.get(name)) for options in trials}) > 1
    ]
    groups: dict[str, list[tuple[Options, Options]]] = {}
    for options in trials:
        report = by_key.get(key_of(options))
        if report is not None:
            alike = {name: value for name, value in options.items() if name != "seed"}
            groups.setdefault(key_of(alike), []).append((options, report))
    return [
        {name: group[0][0].get(name) for name in varied} | _figures([report for _, report in group])
        for group in groups.values()
    ]


def _figures(reports: Sequence[Options]) -> Options:
    """Of one combination: how many runs, how many broken or beyond tolerance, fewest rounds, means."""
    figures: Options = {
        "seeds": len(reports),
        "broken": sum(bool(report["violations"]) for report in reports),
        "beyond_tolerance": sum(report["beyond_tolerance"] is not None for report in reports),
        "certified_rounds": min(report["certified_rounds"] for report in reports),
    }
    for name in ("messages_per_node_and_round", "bytes_per_node_and_round", "loss_clean", "loss_final"):
        values = [report[name] for report in reports if report.get(name) is not None]
        if values:
            figures[name] = sum(values) / len(values)
    return figures
