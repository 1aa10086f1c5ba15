"""Text, token by token, from a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from sterna.errors import ConfigError
from sterna.train.loss import Head
from sterna.train.model import Correction, Decoder, KeyValueCache
from sterna.train.tokens import TextCodec

UNFINISHED = "\ufffd"
"""What a decoder shows for the first bytes of a character whose others are still to come."""


@torch.no_grad()
def generate(
    decoder: Decoder,
    head: Head,
    lora: Correction | None,
    codec: TextCodec,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
) -> Iterator[str]:
    """Pieces of the continuation as they come; joined they are the text.

    Ends at a stop token, after ``max_tokens``, or where the base's context is full.

    Args:
        prompt: token ids, at least one.
        temperature: 0 takes the likeliest token each time.
        top_p: only the likeliest tokens that together have this probability are drawn from.

    Raises:
        ConfigError: the prompt is empty or fills the context, or an option is out of range.
    """
    context = decoder.architecture.max_context
    if not 1 <= len(prompt) < context:
        raise ConfigError(f"the prompt has {len(prompt)} tokens; this base takes 1 to {context - 1}")
    if temperature < 0 or not 0 < top_p <= 1 or max_tokens < 1:
        raise ConfigError(
            f"temperature {temperature}, top_p {top_p}, max_tokens {max_tokens}: "
            "needed are temperature >= 0, 0 < top_p <= 1 and max_tokens >= 1"
        )
    rng = np.random.default_rng(seed)
    room = min(context, len(prompt) + max_tokens)
    cache = KeyValueCache(decoder.architecture, sequences=1, tokens=room)
    tokens, written, shown = np.array([prompt], np.int64), list[int](), ""
    for _ in range(room - len(prompt)):
        h = decoder.hidden(tokens, lora=lora, cache=cache)
        token = _drawn(head.logits(h[:, -1])[0].numpy(), temperature=temperature, top_p=top_p, rng=rng)
        if token in codec.stop_ids:
            break
        written.append(token)
        text = codec.decode(written)
        if len(text) > len(shown) and not text.endswith(UNFINISHED):
            yield text[len(shown) :]
            shown = text
        tokens = np.array([[token]], np.int64)
    text = codec.decode(written)
    if len(text) > len(shown):
        yield text[len(shown) :]


def _drawn(logits: NDArray[np.float32], *, temperature: float, top_p: float, rng: np.random.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    scaled = logits.astype(np.float64) / temperature
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities, kind="stable")
    # The token that crosses top_p still belongs to the nucleus (arXiv:1904.09751).
    kept = order[: int(np.searchsorted(np.cumsum(probabilities[order]), top_p)) + 1]
    share = probabilities[kept]
    return int(rng.choice(kept, p=share / share.sum()))
