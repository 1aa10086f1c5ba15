"""The tables of the journal and how an older journal gets them."""

from __future__ import annotations

APPLICATION_ID = 0x5354524E
"""The file says whose it is ("STRN"); `file state.db` shows it."""

_FIRST = (
    """
    CREATE TABLE swarm (
        id        BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 32),
        charter   BLOB NOT NULL,
        data      TEXT NOT NULL,
        addresses TEXT NOT NULL,
        role      TEXT NOT NULL
    ) STRICT, WITHOUT ROWID
    """,
    # The primary key is the lock against contradicting ourselves: one message for one place, for ever.
    """
    CREATE TABLE own_message (
        swarm   BLOB    NOT NULL REFERENCES swarm (id),
        round   INTEGER NOT NULL CHECK (round >= 0),
        attempt INTEGER NOT NULL CHECK (attempt >= 0),
        kind    INTEGER NOT NULL CHECK (kind BETWEEN 0 AND 255),
        frame   BLOB    NOT NULL,
        PRIMARY KEY (swarm, round, attempt, kind)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE certificate (
        swarm    BLOB    NOT NULL REFERENCES swarm (id),
        round    INTEGER NOT NULL CHECK (round >= 0),
        decision BLOB    NOT NULL CHECK (length(decision) = 32),
        frame    BLOB    NOT NULL,
        PRIMARY KEY (swarm, round)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE evidence (
        swarm  BLOB NOT NULL REFERENCES swarm (id),
        digest BLOB NOT NULL CHECK (length(digest) = 32),
        frame  BLOB NOT NULL,
        PRIMARY KEY (swarm, digest)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE pending_delta (
        swarm        BLOB    NOT NULL PRIMARY KEY REFERENCES swarm (id),
        round        INTEGER NOT NULL CHECK (round >= 0),
        base_adapter BLOB    NOT NULL CHECK (length(base_adapter) = 32),
        delta        BLOB    NOT NULL CHECK (length(delta) = 32),
        figures      BLOB    NOT NULL
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE round_log (
        swarm BLOB    NOT NULL REFERENCES swarm (id),
        round INTEGER NOT NULL CHECK (round >= 0),
        entry TEXT    NOT NULL,
        PRIMARY KEY (swarm, round)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE peer (
        swarm     BLOB    NOT NULL REFERENCES swarm (id),
        id        BLOB    NOT NULL CHECK (length(id) = 32),
        addresses TEXT    NOT NULL,
        seen      INTEGER NOT NULL,
        PRIMARY KEY (swarm, id)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE setting (
        name  TEXT NOT NULL PRIMARY KEY,
        value TEXT NOT NULL
    ) STRICT, WITHOUT ROWID
    """,
    *(
        f"""
        CREATE TRIGGER {table}_is_kept_from_{change.lower()} BEFORE {change} ON {table}
        BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END
        """
        for table in ("own_message", "certificate", "evidence")
        for change in ("UPDATE", "DELETE")
    ),
)

_ERROR_FEEDBACK = (
    "ALTER TABLE pending_delta ADD COLUMN total BLOB CHECK (total IS NULL OR length(total) = 32)",
    """
    CREATE TABLE residual (
        swarm    BLOB    NOT NULL REFERENCES swarm (id),
        subspace INTEGER NOT NULL CHECK (subspace >= 0),
        round    INTEGER NOT NULL CHECK (round >= 0),
        total    BLOB    NOT NULL CHECK (length(total) = 32),
        sent     BLOB    CHECK (sent IS NULL OR length(sent) = 32),
        PRIMARY KEY (swarm, subspace)
    ) STRICT, WITHOUT ROWID
    """,
)

# Losses are nats per token; NaN, which SQLite stores as NULL, is a loss that is no number.
_VERDICTS = (
    """
    CREATE TABLE verdict (
        swarm   BLOB    NOT NULL REFERENCES swarm (id),
        what    TEXT    NOT NULL CHECK (what IN ('served', 'newest')),
        round   INTEGER NOT NULL CHECK (round >= 0),
        adapter BLOB    NOT NULL CHECK (length(adapter) = 32),
        loss    REAL,
        PRIMARY KEY (swarm, what)
    ) STRICT, WITHOUT ROWID
    """,
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_FIRST, _ERROR_FEEDBACK, _VERDICTS)
"""Entry n brings a journal from version n to n + 1. Entries are added, never changed."""
