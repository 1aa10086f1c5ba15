"""Named strings in the journal that concern the node and none of its swarms."""

from __future__ import annotations

from typing import cast

from sterna.store.journal import Journal


def put_setting(journal: Journal, name: str, value: str) -> None:
    with journal.write(f"the setting {name} was not saved") as db:
        db.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", (name, value))


def setting(journal: Journal, name: str) -> str | None:
    rows = journal.read("SELECT value FROM setting WHERE name = ?", (name,))
    return cast(str, rows[0][0]) if rows else None
