"""What llama.cpp calls a decoder of a base's shape, and its tensors.

``bitnet`` has sub-norms, and a head that is its embedding; ``llama`` has neither sub-norms nor another
activation than SiLU. In ``llama`` the two numbers that are rotated together come one after the other out of q
and k, in a base half a head apart: the rows are put in that order, those of an adapter's B as well.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sterna.errors import ConfigError
from sterna.formats.decoder import Shape

TENSORS = {
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
    "attn_norm": "attn_norm",
    "attn_sub_norm": "attn_sub_norm",
    "ffn_norm": "ffn_norm",
    "ffn_sub_norm": "ffn_sub_norm",
}
"""Names of our linears and norms in GGUF files of decoders (gguf-py, tensor_mapping.py)."""

BITNET, LLAMA = "bitnet", "llama"


def architecture_of(shape: Shape) -> str:
    """``bitnet`` or ``llama``.

    Raises:
        ConfigError: llama.cpp computes neither of the two in this shape.
    """
    kind = BITNET if shape.sub_norms else LLAMA
    if not shape.gated:
        wrong = "has no gate"
    elif shape.sub_norms and not shape.tied_embeddings:
        wrong = "has sub-norms and a head that is not its embedding"
    elif shape.sub_norms and shape.heads * shape.head_size != shape.hidden_size:
        wrong = f"has sub-norms and heads of {shape.heads * shape.head_size}, not {shape.hidden_size} in all"
    elif not shape.sub_norms and shape.activation != "silu":
        wrong = f"has the activation {shape.activation} and no sub-norms"
    else:
        return kind
    raise ConfigError(f"this base {wrong}; llama.cpp's {kind} has not, so that GGUF has no place for it")


def tensor_name(name: str) -> str:
    """Of a linear ("layers.0.q") or a norm.

    Raises:
        ConfigError: GGUF has no name for it.
    """
    prefix, _, short = name.rpartition(".")
    if short not in TENSORS:
        raise ConfigError(
            f"GGUF has no name for the linear {short!r}, only for {', '.join(TENSORS)}; "
            f"export with --format sterna"
        )
    return f"blk.{prefix.removeprefix('layers.')}.{TENSORS[short]}.weight"


def row_order(shape: Shape, name: str) -> NDArray[np.intp] | None:
    """Which of our rows stands where in a linear; None if all stay where they are."""
    heads = {"q": shape.heads, "k": shape.kv_heads}.get(name.rpartition(".")[2])
    if heads is None or shape.sub_norms:
        return None
    return np.arange(heads * shape.head_size).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)
