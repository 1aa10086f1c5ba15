"""How long a merge takes, and how much memory above its inputs: ``python -m tests.protocol.merge.measure``.

16 deltas of 10.9 million parameters (rank 16 on every linear of a 2 G base, B only), one core.
"""

# ruff: noqa: T201, what it prints is what it is for
from __future__ import annotations

import argparse
import resource
import time
from typing import get_args

import numpy as np

from sterna_protocol.merge.adapter import genesis_adapter
from sterna_protocol.merge.codec import Codec, decode_delta, delta_blob_bytes, encode_delta, quantise
from sterna_protocol.merge.rules import merge
from sterna_protocol.merge.scheme import delta_size
from tests.protocol.merge.deltas import entry, random_delta
from tests.support.charters import small_charter

RULES = ("mean", "clip+mean", "trimmed", "median", "nnm+trimmed", "clip+filter")
BITNET_2B = tuple(
    zip(
        ("q", "k", "v", "o", "gate", "up", "down"),
        (2560, 640, 640, 2560, 6912, 6912, 2560),
        (2560, 2560, 2560, 2560, 2560, 2560, 6912),
        strict=True,
    )
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--codec", choices=get_args(Codec), default="ternary")
    parser.add_argument("--deltas", type=int, default=16)
    parser.add_argument(
        "--late", action="store_true", help="every third delta one, every third two rounds late"
    )
    arguments = parser.parse_args()
    shape = {"layers": 30, "linears": BITNET_2B, "rank": 16, "scheme": "fixed", "codec": arguments.codec}
    charter = small_charter(**shape)
    size, rng = delta_size(charter.adapter), np.random.default_rng(0)
    print(f"{size} parameters, blobs of {delta_blob_bytes(charter)} bytes")

    values = rng.standard_normal(size, np.float32) / 100
    start = time.process_time()
    delta = quantise(values, arguments.codec)
    print(f"quantise     {time.process_time() - start:6.2f} s")
    start = time.process_time()
    blob = encode_delta(charter, author=bytes(32), round_=1, delta=delta)
    print(f"encode       {time.process_time() - start:6.2f} s")
    start = time.process_time()
    decode_delta(charter, author=bytes(32), round_=1, data=blob)
    print(f"decode       {time.process_time() - start:6.2f} s")

    slate = [
        (entry(i, 7 - i % 3 * arguments.late), random_delta(charter, rng, -16, -6))
        for i in range(arguments.deltas)
    ]
    previous = genesis_adapter(charter)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for rule in RULES:
        start = time.process_time()
        merge(small_charter(rule=rule, **shape), previous, slate, 7)
        above = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(f"{rule:12} {time.process_time() - start:6.2f} s, at most {above:.0f} MiB above the inputs")


if __name__ == "__main__":
    main()
