"""Canonical msgpack: one value has one encoding, and decoding refuses every other."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, Self

import msgpack
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from sterna_protocol.errors import LocalProtocolError, MalformedMessage
from sterna_protocol.wire.limits import MAX_FRAME_BYTES

MAX_FIELDS = 64
"""Fields of the largest record; a map with more entries is refused while it is parsed."""


class Record(BaseModel):
    """A frozen value that travels as a msgpack map; its keys number the fields from 1 as declared.

    Fields are integers, bytes, strings, booleans, other records, or tuples of these. Floats, nil and
    extension types have no encoding.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")
    max_bytes: ClassVar[int] = MAX_FRAME_BYTES

    @model_validator(mode="before")
    @classmethod
    def _name_fields(cls, value: Any) -> Any:
        """Numbered fields, as they come off the wire, get their names."""
        if not isinstance(value, dict) or not value or not all(type(key) is int for key in value):
            return value
        names = tuple(cls.model_fields)
        if len(value) != len(names) or any(not 1 <= key <= len(names) for key in value):
            raise ValueError(f"{cls.__name__} has the fields 1..{len(names)}, got {sorted(value)}")
        return {names[key - 1]: field for key, field in value.items()}

    def encode(self) -> bytes:
        """The one encoding of this value.

        Raises:
            LocalProtocolError: it is longer than ``max_bytes``.
        """
        data = _pack(self)
        if len(data) > self.max_bytes:
            raise LocalProtocolError(
                f"{type(self).__name__} takes {len(data)} bytes, the limit is {self.max_bytes}"
            )
        return data

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with some fields changed; nothing that was computed from the old values comes along."""
        kept = {name: getattr(self, name) for _, name in _numbered(type(self))}
        return self.model_construct(**{**kept, **(update or {})})

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The value behind ``data``.

        Raises:
            MalformedMessage: too long, not msgpack, not this record, or not its one encoding.
        """
        # [REJECT] The message is within its size limit (checked before anything is parsed)
        if len(data) > cls.max_bytes:
            raise MalformedMessage(f"{cls.__name__} of {len(data)} bytes, the limit is {cls.max_bytes}")
        try:
            plain = msgpack.unpackb(
                data,
                raw=False,
                use_list=False,
                strict_map_key=False,
                max_ext_len=0,
                max_map_len=MAX_FIELDS,
            )
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise MalformedMessage(f"{cls.__name__}: not msgpack: {error}") from error
        try:
            record = cls.model_validate(plain)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            # A refused key may be any string of a stranger's; it is shown escaped and short.
            where = ascii(".".join(str(part) for part in first["loc"]))[1:-1][:80]
            raise MalformedMessage(f"{cls.__name__} {where}: {first['msg']}") from error
        # [REJECT] The bytes are the one encoding of the value
        if _pack(record) != data:
            raise MalformedMessage(f"{cls.__name__}: not the canonical encoding")
        return record


def _pack(record: Record) -> bytes:
    packed: bytes = msgpack.packb(_plain(record), use_bin_type=True)
    return packed


def _plain(value: object) -> object:
    # Most values are leaves, and every message is packed once more when it is decoded.
    if isinstance(value, bytes | int | str):
        return value
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Record):
        return {number: _plain(getattr(value, name)) for number, name in _numbered(type(value))}
    return value


@cache
def _numbered(record: type[Record]) -> tuple[tuple[int, str], ...]:
    return tuple(enumerate(record.model_fields, start=1))
