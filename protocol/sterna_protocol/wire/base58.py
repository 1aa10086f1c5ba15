"""Base58 as Bitcoin and libp2p write it: no 0, O, I or l, and a leading "1" for each leading zero byte."""

from __future__ import annotations

from sterna_protocol.errors import MalformedMessage

ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"

MAX_LETTERS = 4096
"""Decoding takes time that grows with the square of the length; a ticket with a long invite has 1,500."""


def encode(data: bytes) -> str:
    """``data`` in base58."""
    number = int.from_bytes(data, "big")
    digits = []
    while number:
        number, digit = divmod(number, 58)
        digits.append(ALPHABET[digit])
    zeros = len(data) - len(data.lstrip(b"\0"))
    return ALPHABET[0] * zeros + "".join(reversed(digits))


def decode(text: str) -> bytes:
    """The bytes that ``text`` stands for; ``encode`` gives ``text`` back.

    Raises:
        MalformedMessage: a letter that base58 has not, named with its place, or too many letters.
    """
    if len(text) > MAX_LETTERS:
        raise MalformedMessage(f"{len(text)} letters of base58, the limit is {MAX_LETTERS}")
    number = 0
    for place, letter in enumerate(text, start=1):
        digit = ALPHABET.find(letter)
        if digit < 0:
            raise MalformedMessage(f"letter {place} is {letter!r}, which base58 has not")
        number = number * 58 + digit
    zeros = len(text) - len(text.lstrip(ALPHABET[0]))
    return b"\0" * zeros + number.to_bytes(-(-number.bit_length() // 8), "big")
