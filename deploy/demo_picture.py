"""Draw the README's picture from the report of a real demo run.

sterna demo --report build/demo.json
python deploy/demo_picture.py build/demo.json docs/demo.svg
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from rich.console import Console

from sterna.cli.demo import print_summary

WIDTH = 104


def main(report: Path, picture: Path) -> None:
    console = Console(record=True, width=WIDTH, markup=False, highlight=False, file=sys.stderr)
    console.print("$ make demo")
    print_summary(json.loads(report.read_text()), console)
    # The template asks a server for its font; a picture in a repository asks nobody.
    drawn = re.sub(r"@font-face \{.*?\}", "", console.export_svg(title="sterna demo"), flags=re.DOTALL)
    picture.write_text(drawn)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
