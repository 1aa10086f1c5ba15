"""The measured process of a rival: the same architecture in transformers, with PEFT's LoRA on all linears.

Arguments: shape, layers, kind, rank, threads. Kinds:

    bf16, fp32   BitNetForCausalLM as it is built: nn.Linear, weights unpacked, nothing quantised
    bitnet       the same with the library's AutoBitLinear ("offline": ternary weights unpacked to bfloat16,
                 int8 activations emulated), as microsoft/bitnet-b1.58-2B-4T is loaded

Weights are ternary values times a scale, which is all that the speed of a dense product can depend on.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import BitNetConfig, BitNetForCausalLM

from sterna.bench.ours import timed
from sterna.bench.process import Answer, peak_bytes, resident_bytes, serve
from sterna.bench.shapes import SHAPES
from sterna.train.base import Architecture

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RATE = 1e-4


class Rival:
    """The rival's model and the jobs of the benchmark, named as Sterna's own."""

    def __init__(self, architecture: Architecture, kind: str, *, rank: int) -> None:
        self._vocab_size = architecture.vocab_size
        self._model: Any = model_of(architecture, kind)
        self._rank = rank
        self._optimiser: torch.optim.AdamW | None = None

    def step(self, tokens: int) -> Answer:
        """One step of training: forward, backward, optimiser."""
        if self._optimiser is None:
            config = LoraConfig(r=self._rank, lora_alpha=2 * self._rank, target_modules=LINEARS)
            self._model = get_peft_model(self._model, config)
            trained = [p for p in self._model.parameters() if p.requires_grad]
            self._optimiser = torch.optim.AdamW(trained, lr=RATE)
        optimiser, ids = self._optimiser, self._tokens(tokens)

        def run() -> float:
            optimiser.zero_grad()
            loss = self._model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            optimiser.step()
            return float(loss)

        return timed(run)

    @torch.no_grad()
    def prefill(self, tokens: int) -> Answer:
        """Reading a prompt, up to the logits of its last token."""
        ids = self._tokens(tokens)
        return timed(lambda: float(self._model(input_ids=ids, logits_to_keep=1).logits.amax()))

    @torch.no_grad()
    def decode(self, tokens: int) -> Answer:
        """So many tokens, one after the other, after a prompt of 16; seconds are for all of them."""
        ids = self._tokens(16 + tokens)
        cache = self._model(input_ids=ids[:, :16], use_cache=True).past_key_values

        def run() -> float:
            largest = 0.0
            for place in range(16, 16 + tokens):
                token = ids[:, place : place + 1]
                largest = float(self._model(input_ids=token, past_key_values=cache).logits.amax())
            return largest

        return timed(run) | {"tokens": tokens}

    def memory(self) -> Answer:
        """What the process holds, and held at most."""
        return {"peak_bytes": peak_bytes(), "resident_bytes": resident_bytes()}

    def _tokens(self, count: int) -> Tensor:
        return torch.randint(self._vocab_size, (1, count), generator=torch.Generator().manual_seed(0))


def model_of(architecture: Architecture, kind: str) -> Any:
    """The model, its frozen weights filled without drawing billions of random numbers."""
    a = architecture
    config = BitNetConfig(
        vocab_size=a.vocab_size,
        hidden_size=a.hidden_size,
        intermediate_size=a.ffn_size,
        num_hidden_layers=a.layers,
        num_attention_heads=a.heads,
        num_key_value_heads=a.kv_heads,
        head_dim=a.head_size,
        hidden_act=a.activation,
        max_position_embeddings=a.max_context,
        rms_norm_eps=a.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": a.rope_theta},
        tie_word_embeddings=a.tied_embeddings,
        attn_implementation="sdpa",
    )
    dtype = torch.float32 if kind == "fp32" else torch.bfloat16
    with torch.device("meta"):
        model: Any = BitNetForCausalLM(config).to(dtype)
        if kind == "bitnet":
            _use_bit_linears(model)
    model.to_empty(device="cpu")
    # Its frequencies are computed, not loaded: a fresh one brings them.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    if a.tied_embeddings:
        model.tie_weights()
    for parameter in model.parameters():
        _fill(parameter.data)
        parameter.requires_grad_(False)
    for buffer in (b for name, b in model.named_buffers() if name.endswith("weight_scale")):
        buffer.fill_(1.0)
    return model.eval()


def _use_bit_linears(model: nn.Module) -> None:
    from transformers.integrations.bitnet import AutoBitLinear

    for name, module in list(model.named_modules()):
        if name.rpartition(".")[2] in LINEARS and isinstance(module, nn.Linear):
            size = (module.in_features, module.out_features)
            model.set_submodule(name, AutoBitLinear(*size, bias=False, dtype=module.weight.dtype))


def _fill(values: Tensor) -> None:
    if values.ndim == 1:
        values.fill_(1.0)
        return
    # One row of ternary values in every row, shifted so that rows differ: a copy at the speed of memory.
    in_ = values.shape[1]
    drawn = torch.randint(-1, 2, (in_ + 64,), generator=torch.Generator().manual_seed(1))
    pattern = (drawn * (1.5 / in_) ** 0.5).to(values.dtype)
    for shift in range(64):
        values[shift::64] = pattern[shift : shift + in_]


def main() -> None:
    """Build the model and serve."""
    shape, layers, kind, rank, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    whole = SHAPES[shape]
    facts = {field: getattr(whole, field) for field in whole.__slots__} | {"layers": int(layers)}
    rival = Rival(Architecture(**facts), kind, rank=int(rank))
    serve({}, {job.__name__: job for job in (rival.step, rival.prefill, rival.decode, rival.memory)})


if __name__ == "__main__":
    main()
