"""Talking to the model: a base, the adapter that this home's node serves, or one in a PEFT directory."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sterna.app.founding import FoundBase, base_of_charter, find_base, known_bases
from sterna.app.homes import open_home_for_reading
from sterna.app.observe import LAST_SWARM
from sterna.errors import ConfigError
from sterna.formats.output import write_file
from sterna.formats.peft import base_name_of, read_peft
from sterna.formats.tensors import encode_tensors
from sterna.store import Store
from sterna.train.base import open_base
from sterna.train.text import Turn
from sterna.train.worker import Worker, WorkerConfig, open_worker
from sterna_protocol.swarm.charter import Charter, SignedCharter
from sterna_protocol.wire.messages import Certificate, decode_frame

DEFAULT_BASE = "nano"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """How to answer.

    Attributes:
        base: one to use without the adapter of this home's swarm.
        adapter: a PEFT directory; its base is ``base``, or else the one it names.
        raw: continue text without roles.
    """

    base: str | None
    adapter: Path | None = None
    raw: bool
    max_tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True, slots=True)
class _Model:
    """What answers. ``charter`` and ``adapter`` stand together; ``given`` is a file, and stands alone."""

    description: str
    base: Path
    charter: Charter | None = None
    adapter: bytes | None = None
    given: Path | None = None


class Conversation:
    """Answers prompts; remembers the turns unless ``raw``."""

    def __init__(self, worker: Worker, model: _Model, options: ChatOptions) -> None:
        self.model = model.description
        self._worker = worker
        self._model = model
        self._options = options
        self._turns: list[Turn] = []

    async def answer(self, prompt: str) -> AsyncIterator[str]:
        """Pieces of the answer as they come."""
        options = self._options
        self._turns.append(Turn("user", prompt))
        pieces = []
        async for piece in self._worker.generate(
            charter=self._model.charter,
            adapter=self._model.adapter,
            given=self._model.given,
            prompt=prompt if options.raw else tuple(self._turns),
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            seed=options.seed,
        ):
            pieces.append(piece)
            yield piece
        self._turns.append(Turn("assistant", "".join(pieces)))


@asynccontextmanager
async def open_conversation(options: ChatOptions, home: Path | None) -> AsyncIterator[Conversation]:
    """A conversation with the chosen model.

    Raises:
        ConfigError: there is no such base, or no adapter for it.
    """
    with tempfile.TemporaryDirectory(prefix="sterna-chat-") as folder:
        if options.adapter is not None:
            model = _with_adapter(options.adapter, options.base, home, Path(folder))
        else:
            model = _base_alone(options.base, home) if options.base is not None else _swarm_model(home)
        async with open_worker(WorkerConfig(base=model.base)) as worker:
            yield Conversation(worker, model, options)


def _base_alone(name: str, home: Path | None) -> _Model:
    base = find_base(name, home)
    return _Model(f"base {base.name}, no adapter", base.path)


def _with_adapter(directory: Path, name: str | None, home: Path | None, folder: Path) -> _Model:
    """The base with the adapter of a PEFT directory, whose matrices go into ``folder``."""
    base = find_base(name, home) if name is not None else _named_base(directory, home)
    linears = {key: (out, in_) for key, out, in_ in base.base.architecture.linears()}
    try:
        read = read_peft(directory, linears=linears)
    except ConfigError as error:
        raise ConfigError(f"{error}; is it over another base than {base.name}? --base names one") from error
    tensors = {}
    for key, (a, b) in read.factors.items():
        tensors[f"{key}.a"], tensors[f"{key}.b"] = a, b * np.float32(read.scale)
    given = folder / "adapter.safetensors"
    write_file(given, encode_tensors(tensors, {}))
    return _Model(f"base {base.name} with the adapter in {directory}", base.path, given=given)


def _named_base(directory: Path, home: Path | None) -> FoundBase:
    """The base that an adapter names, by its own name or its file's."""
    wanted = base_name_of(directory)
    for name, path in known_bases(home).items():
        if wanted in (name, open_base(path).name):
            return find_base(name, home)
    raise ConfigError(
        f"{directory} was made over the base {wanted[:100]!r}, which is not here: name its file with --base"
    )


def _swarm_model(home: Path | None) -> _Model:
    try:
        store = open_home_for_reading(home)
    except ConfigError:
        return _base_alone(DEFAULT_BASE, home)
    with store:
        swarm = store.setting(LAST_SWARM)
        if swarm is None:
            return _base_alone(DEFAULT_BASE, home)
        membership = store.swarm(bytes.fromhex(swarm))
        charter = SignedCharter.decode(membership.signed_charter).charter
        base = base_of_charter(charter, home)
        round_, adapter = served_adapter(store, membership.swarm)
        if round_ == 0 or not store.blobs.has(adapter):
            return _Model(f"base {base.name}; swarm {charter.name} has no adapter to serve yet", base.path)
        return _Model(
            f"base {base.name} with the adapter of swarm {charter.name}, round {round_}",
            base.path,
            charter,
            store.blobs.read(adapter),
        )


def served_adapter(store: Store, swarm: bytes) -> tuple[int, bytes]:
    """Round and digest of the adapter to answer with: the last that the own hold-out text did not speak
    against, or the newest while none was judged; round 0 stands for the base alone."""
    verdicts = store.verdicts(swarm)
    if verdicts is not None:
        return verdicts[0].round_, verdicts[0].adapter
    frame = store.head(swarm)
    certificate = decode_frame(frame) if frame is not None else None
    if not isinstance(certificate, Certificate):
        return 0, b""
    return certificate.round_, certificate.decision.adapter
