"""Turns a checkpoint of pretrain.py into a base file, and measures held-out loss from the base file alone.

Usage::

    python deploy/nano/export.py --run /tmp/nano/run --out node/sterna/data/nano.sterna
    python deploy/nano/export.py --run /tmp/nano/run --out node/sterna/data/nano.sterna --measure --sample

``--measure`` opens the written file again, rebuilds the decoder from its codes and scales, and runs it with
the kernels a node uses, int8 activations included: the figure is that of the file, not of the checkpoint.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from model import Decoder, Shape, TernaryLinear, row_codes, ternary_codes
from pretrain import SPECIAL_TOKENS, held_out_loss, token_losses, windows
from safetensors import safe_open
from safetensors.torch import load_file
from texts import ASSISTANT, BOS, DOMAINS, EOT, USER
from tokenizers import Tokenizer

from sterna.train.base import Architecture, Base, open_base
from sterna.train.base_writer import write_base
from sterna_kernels import TernaryMatrix, matmul

PROVENANCE = """\
Trained from scratch by deploy/nano/pretrain.py of the Sterna repository, on one CPU thread. Tokenizer and
weights saw only these texts: chitchat-dataset 0.9.0 (MIT licence, Copyright (c) 2019 Perception, Control and
Cognition Lab), WordNet 3.0 glosses (WordNet Release 3.0, Copyright 2006 by Princeton University, WordNet
licence), and six novels by Jane Austen (public domain). Licence of the weights: Apache-2.0.
"""
MAX_BYTES = 4 << 20  # it travels inside the wheel


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--sample", action="store_true")
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="other text files to measure on")
    options = parser.parse_args()
    torch.set_num_threads(1)
    export(options.run, options.out)
    base = open_base(options.out)
    model = rebuilt(base)
    tokenizer = Tokenizer.from_str(base.tokenizer_json.decode())
    if options.measure:
        measure(options.run, model, tokenizer)
    if options.sample:
        sample(model, tokenizer)
    for path in options.also:
        stream = np.array(tokenizer.encode(BOS + path.read_text(), add_special_tokens=False).ids)
        print(f"{path.stem}: {_told(held_out_loss(model, stream), stream, tokenizer)[1]}")


def export(run: Path, out: Path) -> None:
    """Writes the run's checkpoint as a base file."""
    path = run / "checkpoint.safetensors"
    with safe_open(path, "pt") as file:
        shape = Shape(**json.loads(file.metadata()["shape"]))
    model = Decoder(shape)
    tensors = load_file(path)
    model.load_state_dict({name[6:]: t for name, t in tensors.items() if name.startswith("model.")})
    matrices = {}
    for name, module in model.named_modules():
        if isinstance(module, TernaryLinear):
            codes, scale = ternary_codes(module.weight.detach())
            matrices[name] = (TernaryMatrix.from_codes(codes.to(torch.int8).numpy(), float(scale)),)
    codes, scales = row_codes(model.embedding.detach())
    vectors = {
        name.removesuffix(".weight"): p.detach().numpy()
        for name, p in model.named_parameters()
        if "norm" in name
    }
    write_base(
        out,
        architecture=architecture(shape),
        matrices=matrices,
        vectors=vectors,
        embedding=(codes.to(torch.int8).numpy(), scales.numpy()),
        tokenizer_json=json.dumps(json.loads((run / "tokenizer.json").read_text())).encode(),
        name=f"sterna-{out.stem}",
        provenance=PROVENANCE,
    )
    size = out.stat().st_size
    print(f"{out}: {size:,} bytes, {sum(p.numel() for p in model.parameters()):,} parameters")
    if size > MAX_BYTES:
        raise SystemExit(f"{size} bytes are more than the {MAX_BYTES} a wheel should carry")


def architecture(shape: Shape) -> Architecture:
    return Architecture(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_size=shape.head_size,
        ffn_size=shape.ffn_size,
        rope_theta=shape.rope_theta,
        norm_eps=shape.norm_eps,
        activation="relu2",
        sub_norms=True,
        gated=True,
        tied_embeddings=True,
        max_context=shape.max_context,
    )


class FixedLinear(torch.nn.Module):
    """A linear of the base file, computed by the kernels a node uses."""

    def __init__(self, matrix: TernaryMatrix) -> None:
        super().__init__()
        self.matrix = matrix

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1]).contiguous().numpy()
        return torch.from_numpy(matmul(rows, self.matrix)).view(*x.shape[:-1], -1)


def rebuilt(base: Base) -> Decoder:
    """The decoder a base file describes, with nothing but the file's numbers in it."""
    a = base.architecture
    model = Decoder(
        Shape(
            vocab_size=a.vocab_size,
            hidden_size=a.hidden_size,
            layers=a.layers,
            heads=a.heads,
            kv_heads=a.kv_heads,
            head_size=a.head_size,
            ffn_size=a.ffn_size,
            rope_theta=a.rope_theta,
            norm_eps=a.norm_eps,
            max_context=a.max_context,
        )
    )
    codes, scales = base.embedding
    model.embedding.data = torch.from_numpy(codes * scales[:, None])  # rounds to the same rows again
    for name, _ in a.vectors():
        model.get_submodule(name).weight.data = torch.from_numpy(base.vector(name).copy())
    for name, _, _ in a.linears():
        layer, linear = name.rsplit(".", 1)
        setattr(model.get_submodule(layer), linear, FixedLinear(*base.planes(name)))
    return model


def measure(run: Path, model: Decoder, tokenizer: Tokenizer) -> None:
    """Prints held-out nats per token and bits per byte, for each domain and as their mean.

    "text alone" leaves out role markers and, of definitions, the question, whose wording is always the same.
    """
    found = []
    for domain in DOMAINS:
        stream = np.load(run / f"{domain}.held_out.npy")
        rows = windows(stream, model.shape.max_context)
        losses = token_losses(model, rows)
        targets = rows[:, 1:]
        text = targets >= len(SPECIAL_TOKENS)  # the special tokens come first in the vocabulary
        if domain == "definitions":
            text &= _answers(targets, tokenizer)
        alone = losses[text].mean().item()
        bits, told = _told(losses.mean().item(), stream, tokenizer)
        found.append((losses.mean().item(), bits, alone))
        print(f"{domain}: {told}, text alone {alone:.4f} nats/token")
    loss, bits, alone = np.mean(found, axis=0)
    print(f"mean: {loss:.4f} nats/token, {bits:.4f} bits/byte, text alone {alone:.4f} nats/token")


def _answers(targets: torch.Tensor, tokenizer: Tokenizer) -> torch.Tensor:
    """Which tokens [rows, context] the assistant says: those nearer after its marker than after any other."""
    flat = targets.flatten()
    place = torch.arange(len(flat))
    markers = flat < len(SPECIAL_TOKENS)
    last = torch.cummax(torch.where(markers, place, 0), 0).values
    return (flat[last] == tokenizer.token_to_id(ASSISTANT)).view(targets.shape)


def _told(loss: float, stream: np.ndarray, tokenizer: Tokenizer) -> tuple[float, str]:
    # Bytes are those of the text; the special tokens between turns cost nats but add no bytes.
    size = len(tokenizer.decode(stream.tolist(), skip_special_tokens=True).encode())
    bits = float(loss * len(stream) / size / np.log(2))
    return bits, f"{loss:.4f} nats/token, {bits:.4f} bits/byte, {len(stream):,} tokens"


def sample(model: Decoder, tokenizer: Tokenizer) -> None:
    """Prints continuations at temperature 0.7, top 40."""
    prompts = [
        f"{BOS}{USER}Hi, how are you today?{EOT}{ASSISTANT}",
        f"{BOS}{USER}Do you like music?{EOT}{ASSISTANT}",
        f'{BOS}{USER}What does "lighthouse" mean?{EOT}{ASSISTANT}',
        f'{BOS}{USER}What does "to hesitate" mean?{EOT}{ASSISTANT}',
        f"{BOS}Elizabeth was not surprised",
        f"{BOS}The morning after the ball",
    ]
    generator = torch.Generator().manual_seed(0)
    for prompt in prompts:
        print("---", prompt + "[...]")
        print(continued(model, tokenizer, prompt, generator))


@torch.no_grad()
def continued(model: Decoder, tokenizer: Tokenizer, prompt: str, generator: torch.Generator) -> str:
    ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    start, end = len(ids), tokenizer.token_to_id(EOT)
    while len(ids) - start < 60 and ids[-1] != end:
        logits = model.logits(torch.tensor([ids[-model.shape.max_context :]]))[0, -1] / 0.7
        best = logits.topk(40)
        choice = torch.multinomial(best.values.softmax(-1), 1, generator=generator)
        ids.append(int(best.indices[choice]))
    text: str = tokenizer.decode(ids[start:], skip_special_tokens=True)
    return text


if __name__ == "__main__":
    main()
