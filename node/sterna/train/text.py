"""A user's file becomes documents: read, checked line by line, split into training and held-out.

``.jsonl``: one object a line with ``text``, or ``prompt`` and ``completion``, or ``messages``
([{"role": "user", "content": ...}, ...]). ``.txt``: prose, cut at blank lines into passages.

This module needs no torch, so that the node can check a file before it starts a worker.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from sterna.errors import DataError

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")

MAX_FILE_BYTES = 1 << 30
"""A file is read as a whole; a peer trains some 40 thousand tokens a round, and this is 250 million."""

HELD_OUT_SHARE = 0.1
"""Share of the documents that are never trained on."""

PASSAGE_CHARACTERS = 1500
"""Prose is split at about this size: some 400 tokens, a few times the reach of a sentence, so that a held-out
passage is not the middle of a trained one."""

SMALL_FILE_PASSAGES = 20
"""A short file is cut finer, into about this many passages, so that something can be held out."""

MIN_PASSAGE_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says; only an assistant's words are learned."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Document:
    """One text, or one conversation.

    Attributes:
        turns: the conversation; empty for plain text.
        text: the plain text; empty for a conversation.
        line: where it begins in its file, from 1.
    """

    turns: tuple[Turn, ...]
    text: str
    line: int

    @property
    def digest(self) -> bytes:
        """Names the content, wherever it stands."""
        plain = json.dumps([self.text, *([turn.role, turn.content] for turn in self.turns)])
        return sha256(b"sterna/document/1" + plain.encode()).digest()


@dataclass(frozen=True, slots=True)
class Split:
    """The documents of a file in its order; equal documents stand on the same side."""

    train: tuple[Document, ...]
    held_out: tuple[Document, ...]


def read_split(path: Path) -> Split:
    """The file's documents, the held-out ones picked by their content alone.

    Raises:
        DataError: as ``read_documents``, or all documents are the same.
    """
    return split_documents(read_documents(path), path)


def read_documents(path: Path) -> tuple[Document, ...]:
    """Every document of the file.

    Raises:
        DataError: not .jsonl or .txt, unreadable, empty, binary, not UTF-8, or a line that is not a document;
            the message names file and line and says what to change.
    """
    kind = path.suffix.lower()
    if kind not in (".jsonl", ".txt") and path.is_file():
        raise DataError(f"{path}: ends in {kind or 'nothing'!r}; give a .jsonl or a .txt file")
    text = _read_text(path)
    documents = tuple(_json_lines(path, text) if kind == ".jsonl" else _passages(text))
    if not documents:
        raise DataError(f"{path}: holds only blank lines; put text into it")
    return documents


def split_documents(documents: Sequence[Document], path: Path) -> Split:
    """The documents on their two sides: each side has at least one.

    A document's side depends on its hash, not on its place, so it keeps it while the file grows.

    Raises:
        DataError: all documents are the same, so none can be held out.
    """
    ranked = sorted({document.digest for document in documents})
    if len(ranked) < 2:
        raise DataError(
            f"{path}: holds one document only; one is held out, so give at least two different ones"
        )
    limit = int(HELD_OUT_SHARE * 2**64)
    held_out = {digest for digest in ranked if int.from_bytes(digest[:8], "big") < limit}
    held_out = (held_out | {ranked[0]}) - {ranked[-1]}
    return Split(
        train=tuple(document for document in documents if document.digest not in held_out),
        held_out=tuple(document for document in documents if document.digest in held_out),
    )


def _read_text(path: Path) -> str:
    try:
        if path.is_file() and path.stat().st_size > MAX_FILE_BYTES:
            size = path.stat().st_size
            raise DataError(f"{path}: {size} bytes, the limit is {MAX_FILE_BYTES}; split the file")
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not data.strip():
        raise DataError(f"{path}: is empty; put text into it")
    if (at := data.find(b"\0")) >= 0:
        raise DataError(
            f"{path}:{_line_of(data, at)}: holds a zero byte, so it is not text; export it as UTF-8 text"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The byte order mark that utf-8-sig takes off shifts the reported place.
        at = error.start + (3 if data.startswith(b"\xef\xbb\xbf") else 0)
        line = _line_of(data, at)
        raise DataError(
            f"{path}:{line}: byte 0x{data[at]:02x} is not UTF-8; save the file as UTF-8"
        ) from None


def _line_of(data: bytes, at: int) -> int:
    return data.count(b"\n", 0, at) + 1


def _json_lines(path: Path, text: str) -> Iterator[Document]:
    for line, row in enumerate(text.split("\n"), start=1):
        if row.strip():
            yield _json_document(row, line, f"{path}:{line}")


def _json_document(row: str, line: int, where: str) -> Document:
    try:
        value = json.loads(row)
    except RecursionError:
        raise DataError(f"{where}: is nested too deeply; keep a flat object on each line") from None
    except ValueError as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        column = error.colno if isinstance(error, json.JSONDecodeError) else 1
        raise DataError(
            f"{where}: is not JSON at column {column} ({reason}); put one object on each line"
        ) from None
    if not isinstance(value, dict):
        raise DataError(f'{where}: is a JSON {_kind(value)}; put an object like {{"text": ...}} there')
    if "messages" in value:
        return Document(turns=_turns(value["messages"], where), text="", line=line)
    if "prompt" in value or "completion" in value:
        prompt = _words(value, "prompt", where, beside="completion")
        completion = _words(value, "completion", where, beside="prompt")
        turns = (Turn(role="user", content=prompt), Turn(role="assistant", content=completion))
        return Document(turns=turns, text="", line=line)
    if "text" in value:
        return Document(turns=(), text=_words(value, "text", where), line=line)
    has = ", ".join(repr(key) for key in list(value)[:5]) or "no field"
    raise DataError(f"{where}: has {has[:200]}; it needs 'text', or 'prompt' and 'completion', or 'messages'")


def _turns(messages: object, where: str) -> tuple[Turn, ...]:
    if not isinstance(messages, list) or not messages:
        raise DataError(
            f"{where}: 'messages' is {_kind(messages)}; give a list of objects with 'role' and 'content'"
        )
    turns = []
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict):
            raise DataError(
                f"{where}: message {number} is {_kind(message)}; give an object with 'role' and 'content'"
            )
        role = message.get("role")
        if role not in ROLES:
            shown = json.dumps(role)[:60]
            raise DataError(f"{where}: message {number} has the role {shown}; use one of {', '.join(ROLES)}")
        turns.append(Turn(role=role, content=_words(message, "content", f"{where}: message {number}")))
    if not any(turn.role == "assistant" for turn in turns):
        raise DataError(f"{where}: 'messages' has no assistant turn, so there is nothing to learn; add one")
    return tuple(turns)


def _words(value: dict[str, object], field: str, where: str, *, beside: str = "") -> str:
    if field not in value:
        reason = f" beside {beside!r}" if beside else ""
        raise DataError(f"{where}: {field!r} is missing{reason}; add it")
    words = value[field]
    if not isinstance(words, str):
        raise DataError(f"{where}: {field!r} is {_kind(words)}; give a string")
    if not words.strip():
        raise DataError(f"{where}: {field!r} is empty; fill it or take the line out")
    try:
        words.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(words[error.start]):04x}"
        raise DataError(f"{where}: {field!r} holds {half}, half of a character; take it out") from None
    return words


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _passages(text: str) -> Iterator[Document]:
    """Runs of whole paragraphs of about one size; a paragraph far over it is cut at ends of sentences."""
    size = max(MIN_PASSAGE_CHARACTERS, min(PASSAGE_CHARACTERS, len(text) // SMALL_FILE_PASSAGES))
    text = text.replace("\r\n", "\n")
    passage, start, line = "", 1, 1
    for piece in re.split(r"(\n[ \t]*\n\s*)", text):
        if piece.strip():
            for part in _sentences(piece, size):
                if not passage:
                    start = line
                passage += part
                line += part.count("\n")
                if len(passage) >= size:
                    yield Document(turns=(), text=passage.strip(), line=start)
                    passage = ""
        else:
            if passage:
                passage += "\n\n"
            line += piece.count("\n")
    if passage.strip():
        yield Document(turns=(), text=passage.strip(), line=start)


def _sentences(paragraph: str, size: int) -> Iterator[str]:
    while len(paragraph) > 2 * size:
        window = paragraph[size : 2 * size]
        ends = [found.end() for found in re.finditer(r"[.!?]\s|\n|\s", window)]
        best = [found.end() for found in re.finditer(r"[.!?]\s|\n", window)] or ends
        cut = size + (best[0] if best else len(window))
        yield paragraph[:cut]
        paragraph = paragraph[cut:]
    yield paragraph
