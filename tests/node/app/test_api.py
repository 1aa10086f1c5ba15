"""Sterna from Python."""

from __future__ import annotations

import subprocess
import sys

import pytest

import sterna
from sterna_protocol.errors import MalformedMessage


def test_importing_sterna_imports_neither_torch_nor_libp2p() -> None:
    code = "import sys, sterna, sterna.cli; print(sorted({'torch', 'libp2p', 'trio'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_base_that_ships_opens_by_name() -> None:
    base = sterna.load_base("nano")
    assert base.architecture.layers > 0
    assert base.planes("layers.0.q")[0].shape == (
        base.architecture.heads * base.architecture.head_size,
        base.architecture.hidden_size,
    )


def test_pull_refuses_what_is_no_ticket() -> None:
    with pytest.raises(MalformedMessage, match="ticket"):
        sterna.pull("hello", "adapter")


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = sterna.nothing_here
