"""Logging of the network process: its own events and the library's warnings, but not at a peer's pace."""

from __future__ import annotations

import logging
import sys
import time
import warnings

from sterna.net.pace import Budget

LINES_PER_SECOND = 10.0
LIBRARY_LINES_PER_SECOND = 1.0
LINE_BURST = 20.0
MAX_LINE = 400
"""The library formats whole messages into its warnings."""


class RateLimit(logging.Filter):
    """Lets a burst through, then a trickle; says how much it kept back."""

    def __init__(self) -> None:
        super().__init__()
        now = time.monotonic()
        self._ours = Budget(rate=LINES_PER_SECOND, burst=LINE_BURST, now=now)
        self._theirs = Budget(rate=LIBRARY_LINES_PER_SECOND, burst=LINE_BURST, now=now)
        self._dropped = 0

    def filter(self, record: logging.LogRecord) -> bool:
        budget = self._ours if record.name.startswith("sterna") else self._theirs
        if not budget.take(1, time.monotonic()):
            self._dropped += 1
            return False
        text = record.getMessage()
        more = f" ({self._dropped} lines dropped)" if self._dropped else ""
        record.msg, record.args = text[:MAX_LINE] + more, ()
        record.exc_info = record.exc_info if budget is self._ours else None
        self._dropped = 0
        return True


class _Fields(logging.Formatter):
    """``net level event key=value ...``."""

    _STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{k}={v}" for k, v in vars(record).items() if k not in self._STANDARD)
        line = f"net {record.levelname.lower()} {record.getMessage()} {fields}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def unmute(name: str) -> None:
    """Send a library's warnings through our handler; it set up its own loggers when it was imported."""
    below = [other for other in logging.root.manager.loggerDict if other.startswith(f"{name}.")]
    for known in [name, *below]:
        logging.getLogger(known).handlers.clear()
        logging.getLogger(known).setLevel(logging.NOTSET)
        logging.getLogger(known).propagate = True
    logging.getLogger(name).setLevel(logging.WARNING)
    # A peer that is not there, or speaks another protocol, is no error.
    for chatty in ("libp2p.transport.tcp", "libp2p.host.basic_host"):
        logging.getLogger(chatty).setLevel(logging.CRITICAL)


def set_up_logging() -> None:
    """For this process; called once, by its entry point."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Fields())
    handler.addFilter(RateLimit())
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(logging.WARNING)
    logging.getLogger("sterna").setLevel(logging.WARNING)
    warnings.simplefilter("ignore")
