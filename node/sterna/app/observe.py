"""Looking at a home from outside: the status its node wrote, the rounds its store keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sterna.app.homes import open_home_for_reading
from sterna.app.status import read_status
from sterna.errors import ConfigError
from sterna.home import home_folder

LAST_SWARM = "last_swarm"
"""Setting: hex id of the swarm this home ran last, the one `sterna resume` means."""


def node_status(home: Path | None) -> dict[str, Any]:
    """The last status of this home's node, with ``running``.

    Raises:
        ConfigError: no node has run here.
    """
    folder = home_folder(home)
    status = read_status(folder)
    if status is None:
        raise ConfigError(
            f"no node has run in {folder}: sterna join TICKET --data FILE, or sterna swarm create --data FILE"
        )
    return status


def round_log(home: Path | None) -> list[dict[str, Any]]:
    """One entry per certified round, oldest first.

    Keys: round, slate_size, signatures, adapter_digest, included, seconds.

    Raises:
        ConfigError: this home is in no swarm.
    """
    with open_home_for_reading(home) as store:
        swarm = store.setting(LAST_SWARM)
        if swarm is None:
            raise ConfigError(f"{store.home} is in no swarm: sterna join TICKET --data FILE")
        return [json.loads(entry) for _, entry in store.round_log(bytes.fromhex(swarm))]
