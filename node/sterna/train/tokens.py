"""Documents become token ids with a mask of what is learned, in the dialogue format that the base knows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from sterna.errors import ConfigError, DataError
from sterna.train.text import ROLES, Document, Role, Split, Turn, read_split

ENCODE_BATCH = 1024
"""Documents handed to the tokenizer at once; bounds the memory of their encodings."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """One document. ``ids`` int32 [n]; ``counts`` bool [n]: whether predicting this token is learned."""

    ids: NDArray[np.int32]
    counts: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Corpus:
    """A file's documents as tokens. ``masked``: at least one of them is a conversation."""

    train: tuple[Tokens, ...]
    held_out: tuple[Tokens, ...]
    masked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSummary:
    """What a checked file holds."""

    documents: int
    held_out_documents: int
    conversations: int
    tokens: int
    held_out_tokens: int


@dataclass(frozen=True, slots=True)
class _Markers:
    """How a dialogue is written: text before each role's words, and after them; "" where there is none.

    ``opening`` and ``closing`` surround a plain document. Markers hold special tokens, words never do.
    """

    opening: str
    closing: str
    before: dict[Role, str]
    after: dict[Role, str]


_FORMATS: tuple[tuple[tuple[str, ...], _Markers], ...] = (
    # (special tokens that give the format away, the format)
    (
        ("<|bos|>", "<|eot|>", "<|user|>", "<|assistant|>"),
        _Markers(
            opening="<|bos|>",
            closing="<|eot|>",
            before={"system": "<|user|>", "user": "<|user|>", "assistant": "<|assistant|>"},
            after={"system": "<|eot|>", "user": "<|eot|>", "assistant": "<|eot|>"},
        ),
    ),
    (
        ("<|im_start|>", "<|im_end|>"),
        _Markers(
            opening="",
            closing="<|im_end|>",
            before={
                "system": "<|im_start|>system\n",
                "user": "<|im_start|>user\n",
                "assistant": "<|im_start|>assistant\n",
            },
            after={"system": "<|im_end|>\n", "user": "<|im_end|>\n", "assistant": "<|im_end|>\n"},
        ),
    ),
    (
        # bitnet-b1.58-2B-4T
        ("<|begin_of_text|>", "<|eot_id|>"),
        _Markers(
            opening="<|begin_of_text|>",
            closing="<|eot_id|>",
            before={"system": "System: ", "user": "User: ", "assistant": "Assistant: "},
            after={"system": "<|eot_id|>", "user": "<|eot_id|>", "assistant": "<|eot_id|>"},
        ),
    ),
    (
        ("<s>", "</s>"),
        _Markers(
            opening="<s>",
            closing="</s>",
            before={"system": "", "user": "User: ", "assistant": "Assistant: "},
            after={"system": "\n", "user": "\n", "assistant": "</s>"},
        ),
    ),
)
_PLAIN = _Markers(
    opening="",
    closing="\n",
    before={"system": "", "user": "User: ", "assistant": "Assistant: "},
    after={"system": "\n", "user": "\n", "assistant": "\n"},
)


class TextCodec:
    """Text to tokens and back for one base."""

    def __init__(self, tokenizer_json: bytes) -> None:
        """Raises ConfigError: the bytes are not a tokenizer of the ``tokenizers`` library."""
        try:
            self._tokenizer = Tokenizer.from_str(tokenizer_json.decode())
        # The library raises bare Exception for whatever is wrong with the file.
        except Exception as error:
            raise ConfigError(f"the base's tokenizer cannot be read: {str(error)[:200]}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._markers = next(
            (
                markers
                for needed, markers in _FORMATS
                if all(self._tokenizer.token_to_id(token) is not None for token in needed)
            ),
            _PLAIN,
        )
        self._marker_ids: dict[str, list[int]] = {}
        closing = {self._markers.closing.strip(), self._markers.after["assistant"].strip()}
        self.stop_ids = frozenset(
            token for mark in closing if mark and (token := self._tokenizer.token_to_id(mark)) is not None
        )

    def corpus(self, split: Split, path: Path) -> Corpus:
        """All documents of the file ``path`` as tokens.

        Raises:
            DataError: a side has nothing to learn, because the tokenizer knows none of its text.
        """
        masked = any(document.turns for document in (*split.train, *split.held_out))
        train, held_out = self._encode(split.train), self._encode(split.held_out)
        for side in (train, held_out):
            if not any(document.counts[1:].any() for document in side):
                raise DataError(
                    f"{path}: the base's tokenizer turns this text into nothing; use another base or text"
                )
        return Corpus(train=tuple(train), held_out=tuple(held_out), masked=masked)

    def document(self, document: Document) -> Tokens:
        """One document as tokens."""
        return self._encode([document])[0]

    def prompt(self, prompt: str | Sequence[Turn]) -> list[int]:
        """What the model continues: the text as it is, or the conversation and the start of an answer."""
        if isinstance(prompt, str):
            return [*self._marker(self._markers.opening), *self._words([prompt])[0]]
        turns = [*self._turns(tuple(prompt)), (self._markers.before["assistant"], "", "")]
        ids = list(self._marker(self._markers.opening))
        for before, words, after in turns:
            ids += [*self._marker(before), *self._words([words])[0], *self._marker(after)]
        return ids

    @property
    def opening(self) -> str | None:
        """The token before every text; None if there is none."""
        return self._markers.opening or None

    @property
    def closing(self) -> str | None:
        """The token that ends an answer; None if the tokenizer has no such token."""
        mark = self._markers.after["assistant"].strip()
        return mark if mark and self._tokenizer.token_to_id(mark) is not None else None

    @property
    def chat_template(self) -> str:
        """The dialogue format in Jinja, over ``messages`` and ``add_generation_prompt``."""
        markers, spoken = self._markers, ""
        answer = json.dumps(markers.before["assistant"])
        for role in ROLES:
            head, tail = json.dumps(markers.before[role]), json.dumps(markers.after[role])
            spoken += f"{{% {'elif' if spoken else 'if'} message['role'] == '{role}' %}}"
            spoken += f"{{{{ {head} + message['content'] | trim + {tail} }}}}"
        return (
            f"{{{{ {json.dumps(markers.opening)} }}}}"
            f"{{% for message in messages %}}{spoken}{{% endif %}}{{% endfor %}}"
            f"{{% if add_generation_prompt %}}{{{{ {answer} }}}}{{% endif %}}"
        )

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these tokens, without special ones."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def _encode(self, documents: Sequence[Document]) -> list[Tokens]:
        # Every document is a run of (marker before, words, marker after, learned); the words of many
        # documents go to the tokenizer in one call, which is ten times faster than one by one.
        encoded = []
        for first in range(0, len(documents), ENCODE_BATCH):
            batch = [self._segments(document) for document in documents[first : first + ENCODE_BATCH]]
            words = iter(self._words([segment[1] for segments in batch for segment in segments]))
            for segments in batch:
                ids = list(self._marker(self._markers.opening))
                counts = [False] * len(ids)
                for before, _, after, learned in segments:
                    head, tail = self._marker(before), self._marker(after)
                    body = next(words)
                    ids += [*head, *body, *tail]
                    counts += [False] * len(head) + [learned] * (len(body) + len(tail))
                encoded.append(Tokens(ids=np.array(ids, np.int32), counts=np.array(counts, np.bool_)))
        return encoded

    def _segments(self, document: Document) -> list[tuple[str, str, str, bool]]:
        if not document.turns:
            return [("", document.text, self._markers.closing, True)]
        rendered = self._turns(document.turns)
        return [
            (*segment, turn.role == "assistant")
            for segment, turn in zip(rendered, document.turns, strict=True)
        ]

    def _turns(self, turns: tuple[Turn, ...]) -> list[tuple[str, str, str]]:
        before, after = self._markers.before, self._markers.after
        return [(before[turn.role], turn.content.strip(), after[turn.role]) for turn in turns]

    def _words(self, texts: Sequence[str]) -> list[list[int]]:
        # A "<|eot|>" that stands in a user's text is text: parsed as a token it would forge a turn.
        self._tokenizer.encode_special_tokens = True
        return [
            encoding.ids for encoding in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        ]

    def _marker(self, text: str) -> list[int]:
        if text not in self._marker_ids:
            self._tokenizer.encode_special_tokens = False
            self._marker_ids[text] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return self._marker_ids[text]


def check_data(path: Path, *, tokenizer_json: bytes) -> DataSummary:
    """What the file holds, after the same reading that training does; nothing is trained.

    Raises:
        DataError: the file cannot be trained on; the message names file and line.
        ConfigError: the tokenizer cannot be read.
    """
    split = read_split(path)
    corpus = TextCodec(tokenizer_json).corpus(split, path)
    return DataSummary(
        documents=len(split.train) + len(split.held_out),
        held_out_documents=len(split.held_out),
        conversations=sum(bool(document.turns) for document in (*split.train, *split.held_out)),
        tokens=sum(document.ids.size for document in corpus.train),
        held_out_tokens=sum(document.ids.size for document in corpus.held_out),
    )
