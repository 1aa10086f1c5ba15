"""Options that do nothing beside others: refused, for nobody gives them for nothing."""

from __future__ import annotations

from typing import Any

import typer

from sterna.errors import ConfigError

_OF_GRIDS = ("results", "processes", "engine", "ray_address")
_OF_LEARNING = ("base", "sharing")


def is_given(context: typer.Context, name: str) -> bool:
    """Whether the command line has the parameter ``name``, be it with its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def refuse_ignored_of_simulate(context: typer.Context) -> None:
    """Return if every option of a `sterna simulate` has an effect.

    Raises:
        ConfigError: one has none; the message says with which it would.
    """
    values: dict[str, Any] = context.params
    given = [name for name in values if is_given(context, name)]
    is_grid, is_ray = values["grid"] is not None, values["engine"] == "ray"
    for name in given:
        option = f"--{name.replace('_', '-')}"
        if is_grid and name not in (*_OF_GRIDS, "grid", "as_json"):
            raise ConfigError(
                f"{option} does nothing with --grid: write it into {values['grid']}, or leave it out"
            )
        if not is_grid and name in _OF_GRIDS:
            raise ConfigError(f"{option} does nothing for a single trial: it needs --grid FILE")
        if name == "ray_address" and not is_ray:
            raise ConfigError(f"{option} does nothing without --engine ray")
        if name == "processes" and is_ray:
            raise ConfigError(
                f"{option} does nothing with --engine ray, which runs one trial a CPU of the cluster"
            )
        if name in _OF_LEARNING and values["learning"] != "on":
            raise ConfigError(f"{option} does nothing where nobody learns: give --learning on too")
        if name == "attack" and not values["byzantine"]:
            raise ConfigError(f"{option} does nothing where nobody attacks: give --byzantine SHARE too")
