"""What is wrong with a value, in the words of whoever has to change it."""

from __future__ import annotations

from pydantic import ValidationError

_WORDS = {
    "int_parsing": "give a whole number",
    "int_parsing_size": "give a number of fewer digits",
    "float_parsing": "give a number",
    "greater_than_equal": "give {ge} or more",
    "less_than_equal": "give {le} or less",
    "string_too_short": "give {min_length} characters or more",
    "string_too_long": "give {max_length} characters or fewer",
    "string_pattern_mismatch": "leave out control characters and what else turns or hides text",
}
"""By pydantic's name of what a value fails; what is not here no option of ours can fail."""


def refusal(name: str, error: ValidationError) -> str:
    """What ``name`` was given that cannot be, and what to give: "--uses 0: give 1 or more"."""
    detail = error.errors(include_url=False)[0]
    context = detail.get("ctx", {})
    if "error" in context:
        return f"{name}: {str(context['error']).rstrip('.')}"
    words = _WORDS.get(detail["type"], detail["msg"])
    limits = {key: f"{value:.12g}" if isinstance(value, float) else value for key, value in context.items()}
    return f"{name} {_shown(detail['input'])}: {words.format(**limits)}"


def counted(count: int, noun: str) -> str:
    """ "1 peer", "2 peers"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _shown(value: object) -> str:
    """As it was typed, where that can be read."""
    text = str(value)
    return text if text.isprintable() and text and " " not in text else repr(value)
