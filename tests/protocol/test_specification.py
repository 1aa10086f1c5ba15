"""The tables of the specification name the fields of every record, in order: they are the wire's numbers."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import sterna_protocol
from sterna_protocol.wire.encoding import Record

SPECIFICATION = Path(__file__).parents[2] / "docs" / "spec"

# A node keeps these for itself, in whatever form it likes.
KEPT = {"LockRecord"}


def records():
    """Every record that travels."""
    for module in pkgutil.walk_packages(sterna_protocol.__path__, "sterna_protocol."):
        importlib.import_module(module.name)
    found, grown = set(), {Record}
    while grown:
        grown = {child for parent in grown for child in parent.__subclasses__()}
        found |= grown
    return sorted(
        (
            record
            for record in found
            if record.__module__.startswith("sterna_protocol.") and record.__name__ not in KEPT
        ),
        key=lambda record: record.__name__,
    )


def tables():
    """Record -> names of its fields, from each table under a line that begins with the record in bold."""
    found = {}
    for page in sorted(SPECIFICATION.glob("*.md")):
        names = []
        for line in page.read_text(encoding="utf-8").splitlines():
            if line.startswith("**"):
                names = re.findall(r"\*\*([A-Z][A-Za-z]+)\*\*", line)
                fields = []
            elif names and (row := re.match(r"\| (\d+) \| (\w+) \|", line)):
                fields.append(row[2])
                assert int(row[1]) == len(fields), f"{page.name}, {names}: field {row[1]}"
                found |= dict.fromkeys(names, fields)
            elif line.startswith("#"):
                names = []
    return found


@pytest.mark.parametrize("record", records(), ids=lambda record: record.__name__)
def test_a_record_is_in_the_specification_field_by_field(record):
    assert tables().get(record.__name__) == list(record.model_fields)
