"""Founding a swarm: which base, and the charter that follows from it."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sterna.errors import ConfigError
from sterna.home import BASES, home_folder
from sterna.train.base import Base, builtin_bases, open_base
from sterna.wording import refusal
from sterna_protocol.swarm.charter import Charter, SignedCharter, sign_charter
from sterna_protocol.swarm.defaults import TOKENS_PER_SEQUENCE, AdmissionMode, Quorum, Rule, default_charter
from sterna_protocol.wire.signing import SigningKey


@dataclass(frozen=True, slots=True)
class FoundBase:
    """A base on this machine."""

    name: str
    path: Path
    base: Base


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundingChoices:
    """What a founder may choose on the command line; ``None`` leaves the charter's default."""

    name: str
    steps: int | None = None
    min_deltas: int | None = None
    rule: Rule | None = None
    quorum: Quorum | None = None
    admission: AdmissionMode | None = None
    train_milliseconds: int | None = None


def known_bases(home: Path | None = None) -> dict[str, Path]:
    """The bases that ship and those in the folder ``bases`` of the home, by the names of their files."""
    added = sorted((home_folder(home) / BASES).glob("*.sterna"))
    return {path.stem: path for path in added} | builtin_bases()


def find_base(name: str, home: Path | None = None) -> FoundBase:
    """The base called ``name``: one that ships, one of the home's, or a path to a base file.

    Raises:
        ConfigError: there is none, or the file is not a base.
    """
    bases = known_bases(home)
    path = bases.get(name) or Path(name)
    if not path.is_file():
        raise ConfigError(f"no base {name!r}: name one of {', '.join(sorted(bases))}, or give a base file")
    base = open_base(path)
    return FoundBase(base.name, path, base)


def base_of_charter(charter: Charter, home: Path | None = None) -> FoundBase:
    """The base on this machine that a swarm trains over.

    Raises:
        ConfigError: this machine has no base with the charter's digest.
    """
    for path in known_bases(home).values():
        base = open_base(path)
        if base.digest == charter.base:
            return FoundBase(base.name, path, base)
    raise ConfigError(
        f"this swarm trains over the base {charter.base_name!r} ({charter.base.hex()[:12]}), which is not "
        f"here: put its file into {home_folder(home) / BASES}, or install the Sterna that its founder uses"
    )


def found(base: FoundBase, key: SigningKey, choices: FoundingChoices) -> SignedCharter:
    """A new swarm's charter, founded and signed by ``key`` alone.

    Raises:
        ConfigError: a choice is out of its range.
    """
    architecture = base.base.architecture
    chosen: dict[str, Any] = {name: value for name, value in asdict(choices).items() if value is not None}
    try:
        charter = default_charter(
            **chosen,
            nonce=secrets.token_bytes(16),
            seed=secrets.token_bytes(32),
            founders=(key.peer,),
            base_name=base.name,
            base=base.base.digest,
            tokenizer=hashlib.sha256(base.base.tokenizer_json).digest(),
            layers=architecture.layers,
            linears=architecture.linears_of_a_layer(),
            tokens_per_sequence=min(TOKENS_PER_SEQUENCE, architecture.max_context),
        )
    except ValidationError as error:
        field = ".".join(map(str, error.errors(include_url=False)[0]["loc"]))
        option = f"--{field.replace('_', '-')}" if field in chosen else field or "the charter"
        raise ConfigError(refusal(option, error)) from error
    return sign_charter(charter, (key,))


def list_bases(home: Path | None = None) -> list[dict[str, Any]]:
    """Name, parameters, bytes, digest (hex) and provenance of every base that is here."""
    return [base_facts(name, open_base(path)) for name, path in sorted(known_bases(home).items())]


def base_facts(name: str, base: Base) -> dict[str, Any]:
    """Name, parameters, bytes, digest (hex) and provenance of one base."""
    return {
        "name": name,
        "parameters": _parameters(base),
        "bytes": base.path.stat().st_size,
        "digest": base.digest.hex(),
        "provenance": base.provenance,
    }


def _parameters(base: Base) -> int:
    architecture = base.architecture
    embeddings = architecture.vocab_size * architecture.hidden_size
    ternary = sum(out * in_ for _, out, in_ in architecture.linears())
    return ternary + embeddings * (1 if architecture.tied_embeddings else 2)
