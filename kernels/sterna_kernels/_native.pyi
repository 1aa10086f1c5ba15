"""Ternary products in C++; private to sterna_kernels."""

from collections.abc import Sequence

def forward(
    packed: int,
    n: int,
    k: int,
    scale: float,
    scales: int,
    group: int,
    x: int,
    rows: int,
    y: int,
    left: int = 0,
    right: int = 0,
    rank: int = 0,
    to_bfloat16: bool = False,
    is_bfloat16: bool = False,
    low: int = 0,
) -> None: ...
def backward(
    packed: int,
    n: int,
    k: int,
    scale: float,
    scales: int,
    group: int,
    g: int,
    rows: int,
    limbs: int,
    dx: int,
    left: int = 0,
    right: int = 0,
    rank: int = 0,
    to_bfloat16: bool = False,
    is_bfloat16: bool = False,
    low: int = 0,
) -> None: ...
def outer(
    g: int, is_bfloat16: bool, rows: int, columns: int, left: int, rank: int, scale: float, to: int
) -> None: ...
def unpack(packed: int, n: int, k: int, first: int, rows: int, codes: int) -> None: ...
def rms_norm(
    x: int, is_bfloat16: bool, w: int, eps: float, rows: int, length: int, y: int, inverse: int
) -> None: ...
def rms_norm_backward(
    g: int, x: int, is_bfloat16: bool, w: int, inverse: int, residual: int, rows: int, length: int, dx: int
) -> None: ...
def gated(
    act: str,
    gate: int,
    up: int,
    are_bfloat16: bool,
    w: int,
    eps: float,
    rows: int,
    length: int,
    y: int,
    inverse: int,
) -> None: ...
def gated_backward(
    act: str,
    g: int,
    gate: int,
    up: int,
    are_bfloat16: bool,
    w: int,
    inverse: int,
    rows: int,
    length: int,
    dgate: int,
    dup: int,
) -> None: ...
def rotate(
    x: int,
    is_bfloat16: bool,
    cos: int,
    sin: int,
    sign: float,
    tokens: int,
    period: int,
    heads: int,
    size: int,
    to_bfloat16: bool,
    y: int,
) -> None: ...
def put_heads(
    x: int,
    is_bfloat16: bool,
    sequences: int,
    tokens: int,
    heads: int,
    size: int,
    capacity: int,
    first: int,
    room: int,
) -> None: ...
def attend(
    q: int,
    k: int,
    v: int,
    sequences: int,
    queries: int,
    keys: int,
    heads: int,
    kv_heads: int,
    size: int,
    y: int,
) -> bool: ...
def attends(size: int) -> bool: ...
def attend_backward(
    q: int,
    k: int,
    v: int,
    g: int,
    sequences: int,
    queries: int,
    keys: int,
    heads: int,
    kv_heads: int,
    size: int,
    dq: int,
    dk: int,
    dv: int,
) -> bool: ...

class Layer:
    pass

def layer(
    heads: int,
    kv_heads: int,
    head_size: int,
    act: str,
    eps: float,
    linears: Sequence[Sequence[tuple[int, int, int, float, int, int]]],
    norms: Sequence[int],
) -> Layer: ...
def pass_token(
    layer: Layer,
    adapter: Sequence[tuple[int, int, int]],
    cos: int,
    sin: int,
    keys: int,
    values: int,
    capacity: int,
    length: int,
    h: int,
) -> None: ...
def project(
    layer: Layer,
    adapter: Sequence[tuple[int, int, int]],
    h: int,
    rows: int,
    cos: int,
    sin: int,
    period: int,
    to_bfloat16: bool,
    q: int,
    k: int,
    v: int,
) -> None: ...
def complete(
    layer: Layer,
    adapter: Sequence[tuple[int, int, int]],
    attention: int,
    rows: int,
    in_bfloat16: bool,
    h: int,
) -> None: ...
def int8_forward(codes: int, scales: int, n: int, k: int, x: int, rows: int, y: int) -> None: ...
def int8_backward(codes: int, scales: int, n: int, k: int, g: int, rows: int, dx: int) -> None: ...
def address(array: object) -> int: ...
def ceilings() -> list[str]: ...
def run_ceiling(name: str, rounds: int) -> int: ...
def read_memory(bytes_at: int, size: int, streams: int) -> int: ...
def variants() -> list[str]: ...
def variant() -> str: ...
def use_variant(name: str) -> bool: ...
