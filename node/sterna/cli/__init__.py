"""The command line: one file a subcommand; every failure is one line that says what to change."""

from __future__ import annotations

import logging
import sys
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from sterna.__main__ import EXIT_INTERRUPTED
from sterna.cli import (
    base,
    bench,
    chat,
    demo,
    identity,
    join,
    membership,
    observe,
    pull,
    simulate,
    swarm,
    verify,
)
from sterna.cli.output import console, fail, notices
from sterna.cli.usage import explain, is_help
from sterna.errors import NodeError, StorageError
from sterna.home import home_folder
from sterna.store import refused_by_disk
from sterna_protocol.errors import ProtocolError

EXIT_INTERNAL = 70
"""A bug in Sterna (sysexits' EX_SOFTWARE); the details are in <home>/crash.log."""

EXIT_PROTOCOL = 6
"""What came from a peer or a ticket is not what it claims to be; the same code as a failed verification."""

EXIT_USAGE = 2
"""The command line cannot be; the same code as any other ConfigError."""

app = typer.Typer(
    name="sterna",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Laptops fine-tune one ternary language model together, with nobody in the middle.",
    epilog="First try: sterna demo. Then sterna swarm create --data FILE on one machine, and on the others "
    "what it prints.",
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        console.print(f"sterna {version('sterna')}")
        raise typer.Exit


@app.callback()
def _program(
    print_version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and end.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    """Laptops fine-tune one ternary language model together, with nobody in the middle."""


app.command("demo")(demo.demo)
app.command("init")(identity.init)
app.add_typer(identity.app, name="id")
app.add_typer(swarm.app, name="swarm")
app.command("join")(join.join)
app.command("resume")(join.resume)
app.command("status")(observe.status)
app.command("peers")(observe.peers)
app.command("rounds")(observe.rounds)
app.command("invite")(membership.invite)
app.command("revoke")(membership.revoke)
app.command("leave")(membership.leave)
app.command("pull")(pull.pull)
app.command("verify")(verify.verify)
app.command("chat", short_help="Talk to the model, with the newest certified adapter.")(chat.chat)
app.add_typer(base.app, name="base")
app.command("simulate")(simulate.simulate)
app.add_typer(bench.app, name="bench")


def main() -> None:
    """Run one command and end the process with its exit code (docs/howto/exit-codes.md)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogLines("%(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit code of ``sterna ARGUMENTS``."""
    try:
        # What it returns is the code of a command that ended itself, or None.
        return app(arguments, prog_name="sterna", standalone_mode=False) or 0
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else 0
    except typer.TyperException as error:
        if is_help(error):
            notices.print(error.format_message())
            return EXIT_USAGE
        message, code = explain(error), EXIT_USAGE
    except (NodeError, ProtocolError) as error:
        message, code = str(error), error.exit_code if isinstance(error, NodeError) else EXIT_PROTOCOL
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except OSError as error:
        refused = refused_by_disk(error)
        if refused is None:
            message, code = _record_crash(error, _home(arguments)), EXIT_INTERNAL
        else:
            message, code = refused, StorageError.exit_code
    except Exception as error:  # noqa: BLE001 - the last line of defence: a user never reads a traceback
        message, code = _record_crash(error, _home(arguments)), EXIT_INTERNAL
    return fail(message, code, as_json="--json" in arguments)


class LogLines(logging.Formatter):
    """One line a record, with what it carries beside its name."""

    def format(self, record: logging.LogRecord) -> str:
        plain = logging.makeLogRecord({}).__dict__
        details = [f"{key}={value}" for key, value in record.__dict__.items() if key not in plain]
        return " ".join([super().format(record), *details])


def _home(arguments: list[str]) -> Path | None:
    """What --home says, as far as that can be told of arguments that led to a bug."""
    for place, word in enumerate(arguments):
        if word == "--home" and place + 1 < len(arguments):
            return Path(arguments[place + 1])
        if word.startswith("--home="):
            return Path(word.removeprefix("--home="))
    return None


def _record_crash(error: Exception, home: Path | None) -> str:
    report = "".join(traceback.format_exception(error))
    summary = f"internal error: {type(error).__name__}: {error}".splitlines()[0]
    try:
        path = home_folder(home) / "crash.log"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_text(report)
    except OSError:
        return summary
    return f"{summary} (details for a bug report: {path})"
