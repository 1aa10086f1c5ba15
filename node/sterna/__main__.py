"""`python -m sterna`, and `sterna`."""

import sys

EXIT_INTERRUPTED = 130


def main() -> None:
    """Run one command and end the process with its exit code (docs/howto/exit-codes.md)."""
    try:
        # Imported here, so that Ctrl-C during the imports is an interruption like any other.
        from sterna.cli import main as run
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    run()


if __name__ == "__main__":
    main()
