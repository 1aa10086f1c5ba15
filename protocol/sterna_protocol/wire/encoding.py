"""Canonical msgpack: one value has one encoding, and decoding refuses every other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Self, get_args, get_origin

import msgpack
from pydantic import BaseModel, ConfigDict, ValidationError

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
        kept = {name: self.__dict__[name] for name in type(self).model_fields}
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
        named = _name_fields(cls, plain)
        try:
            record = cls.model_validate(named)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            # What is shown of a stranger's bytes is escaped and short.
            where = ascii(".".join(str(part) for part in first["loc"]))[1:-1][:80]
            raise MalformedMessage(f"{cls.__name__} {where}: {first['msg']}") from error
        # [REJECT] The bytes are the one encoding of the value
        if msgpack.packb(plain, use_bin_type=True) != data:
            raise MalformedMessage(f"{cls.__name__}: not the canonical encoding")
        return record


def _pack(record: Record) -> bytes:
    packed: bytes = msgpack.packb(_number_fields(record), use_bin_type=True)
    return packed


@dataclass(frozen=True, slots=True)
class _Field:
    """A field of a record; ``record``: the class of the record in it, ``are_several``: in the tuple in it."""

    number: int
    name: str
    record: type[Record] | None
    are_several: bool


def _number_fields(record: Record) -> dict[int, object]:
    """What is packed: all fields by number."""
    values = record.__dict__
    plain: dict[int, object] = {}
    for field in _fields(type(record)):
        value = values[field.name]
        if field.record is not None:
            value = [_number_fields(item) for item in value] if field.are_several else _number_fields(value)
        plain[field.number] = value
    return plain


def _name_fields(cls: type[Record], plain: object) -> object:
    """What is validated: numbered fields, as they come off the wire, by name. What is no map stays as it is.

    Raises:
        MalformedMessage: fields are missing, too many, or not in the order of their numbers.
    """
    if type(plain) is not dict:
        return plain
    fields = _fields(cls)
    # [REJECT] The fields are those of the record, in order. True and 1.0 are equal to 1, but are not numbers.
    if [*plain] != [field.number for field in fields] or {*map(type, plain)} - {int}:
        has_numbers = all(type(key) is int for key in plain) and {*plain} != {*range(1, len(fields) + 1)}
        got = f", got {sorted(plain)}" if has_numbers else " in order: not the canonical encoding"
        raise MalformedMessage(f"{cls.__name__} has the fields 1..{len(fields)}{got}")
    named: dict[str, object] = {}
    for field in fields:
        value = plain[field.number]
        if field.record is not None:
            if not field.are_several:
                value = _name_fields(field.record, value)
            elif type(value) is tuple:
                value = tuple(_name_fields(field.record, item) for item in value)
        named[field.name] = value
    return named


@cache
def _fields(cls: type[Record]) -> tuple[_Field, ...]:
    """The fields of a record, numbered from 1 as declared."""
    found = []
    for number, (name, info) in enumerate(cls.model_fields.items(), start=1):
        are_several = get_origin(info.annotation) is tuple
        inside = get_args(info.annotation) if are_several else (info.annotation,)
        records = [kind for kind in inside if isinstance(kind, type) and issubclass(kind, Record)]
        found.append(_Field(number, name, records[0] if records else None, are_several))
    return tuple(found)
