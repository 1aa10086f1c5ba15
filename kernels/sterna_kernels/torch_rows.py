"""What a decoder does with rows between two products, as torch functions of one pass over memory.

Inputs are float32 or bfloat16, results float32 unless said otherwise. ``keep`` says how what the backward
pass needs is kept: as it is, or in bfloat16: half the memory, each number wrong by at most 2^-8 of itself.

Shapes: n elements of a row; t tokens, h heads, e head size.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from sterna_kernels import _native

Activation = Literal["relu2", "silu"]


Keep = Callable[[Tensor], Tensor]
"""What is kept of a tensor for the backward pass."""


def as_it_is(x: Tensor) -> Tensor:
    """The tensor itself."""
    return x


def in_bfloat16(x: Tensor) -> Tensor:
    """A rounded copy."""
    return x.to(torch.bfloat16)


class Shelf:
    """Room in one piece for what a pass keeps in bfloat16.

    Kept tensors with a place of their own each would lie scattered between the many that live shortly, and
    the memory between them would suit no later one: up to a quarter of a step's memory.
    """

    def __init__(self, elements: int) -> None:
        self._room = torch.empty(elements, dtype=torch.bfloat16)
        self._used = 0

    def keep(self, x: Tensor) -> Tensor:
        """A rounded copy on the shelf, or beside it when it is full; what is rounded already, as it is."""
        end = self._used + x.numel()
        if x.dtype is torch.bfloat16 or end > self._room.numel():
            return in_bfloat16(x)
        # Not a view, for views share the count of writes by which autograd guards what it saved.
        place = torch.empty(0, dtype=torch.bfloat16)
        place.set_(self._room.untyped_storage(), self._used, x.shape, x.contiguous().stride())
        self._used = end
        return place.copy_(x)


def rms_norm(x: Tensor, w: Tensor, eps: float, *, keep: Keep = as_it_is) -> Tensor:
    """w x / sqrt(mean(x^2) + eps) of rows x [.., n]; the weight w [n] is frozen."""
    y: Tensor = _RmsNorm.apply(x, w, eps, keep)  # type: ignore[no-untyped-call]
    return y


def rms_norm_beside(x: Tensor, w: Tensor, eps: float, *, keep: Keep = as_it_is) -> tuple[Tensor, Tensor]:
    """x once more and ``rms_norm`` of it: for a residual stream, whose two gradients are added on the way."""
    both: tuple[Tensor, Tensor] = _RmsNormBeside.apply(x, w, eps, keep)  # type: ignore[no-untyped-call]
    return both


def gated(
    act: Activation, gate: Tensor, up: Tensor, w: Tensor | None, eps: float, *, keep: Keep = as_it_is
) -> Tensor:
    """act(gate) * up of rows [.., n], normed with the weight w [n] if there is one."""
    y: Tensor = _Gated.apply(gate, up, w, eps, act, keep)  # type: ignore[no-untyped-call]
    return y


def rotated(x: Tensor, cos: Tensor, sin: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Half-rotation of x [b, t, h, e] by the angles of its positions, cos and sin [t, e/2], in ``dtype``."""
    y: Tensor = _Rotated.apply(x, cos, sin, dtype)  # type: ignore[no-untyped-call]
    return y


# autograd's untyped classes; the operators they call are what torch.compile sees.


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, eps, keep):  # type: ignore[no-untyped-def]
        y, inverse = _rms_norm(x, w, eps)
        ctx.save_for_backward(keep(x), w, inverse)
        return y

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        return _rms_norm_backward(g, *ctx.saved_tensors, None), None, None, None


class _RmsNormBeside(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, eps, keep):  # type: ignore[no-untyped-def]
        y, inverse = _rms_norm(x, w, eps)
        ctx.save_for_backward(keep(x), w, inverse)
        return x.view_as(x), y

    @staticmethod
    def backward(ctx, residual, g):  # type: ignore[no-untyped-def]
        return _rms_norm_backward(g, *ctx.saved_tensors, residual), None, None, None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up, w, eps, act, keep):  # type: ignore[no-untyped-def]
        y, inverse = _gated(gate, up, w, eps, act)
        ctx.save_for_backward(keep(gate), keep(up), w, inverse)
        ctx.act = act
        return y

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        dgate, dup = _gated_backward(g, *ctx.saved_tensors, ctx.act)
        return dgate, dup, None, None, None, None


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, cos, sin, dtype):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin, 1.0, dtype is torch.bfloat16)

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        return _rotate(g, *ctx.saved_tensors, -1.0, False), None, None, None


# --- the operators ---

# torch has no types for this class.
_library: Any = torch.library.Library("sterna", "FRAGMENT")  # type: ignore[no-untyped-call]


def _rms_norm_cpu(x: Tensor, w: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x = x.contiguous()
    y, inverse = _rms_norm_fake(x, w, eps)
    n = x.shape[-1]
    rows = inverse.numel()
    _native.rms_norm(x.data_ptr(), _rounds(x), w.data_ptr(), eps, rows, n, y.data_ptr(), inverse.data_ptr())
    return y, inverse


def _rms_norm_fake(x: Tensor, w: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=torch.float32), x.new_empty(x.shape[:-1], dtype=torch.float32)


def _rms_norm_backward_cpu(
    g: Tensor, x: Tensor, w: Tensor, inverse: Tensor, residual: Tensor | None
) -> Tensor:
    g, x = g.contiguous(), x.contiguous()
    residual = None if residual is None else residual.contiguous()
    dx = torch.empty_like(g)
    n = x.shape[-1]
    _native.rms_norm_backward(
        g.data_ptr(),
        x.data_ptr(),
        _rounds(x),
        w.data_ptr(),
        inverse.data_ptr(),
        _address(residual),
        inverse.numel(),
        n,
        dx.data_ptr(),
    )
    return dx


def _rms_norm_backward_fake(
    g: Tensor, x: Tensor, w: Tensor, inverse: Tensor, residual: Tensor | None
) -> Tensor:
    return g.new_empty(g.shape)


def _gated_cpu(gate: Tensor, up: Tensor, w: Tensor | None, eps: float, act: str) -> tuple[Tensor, Tensor]:
    gate, up = gate.contiguous(), up.contiguous()
    y, inverse = _gated_fake(gate, up, w, eps, act)
    _native.gated(
        act,
        gate.data_ptr(),
        up.data_ptr(),
        _rounds(gate),
        _address(w),
        eps,
        inverse.numel(),
        gate.shape[-1],
        y.data_ptr(),
        inverse.data_ptr(),
    )
    return y, inverse


def _gated_fake(gate: Tensor, up: Tensor, w: Tensor | None, eps: float, act: str) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape, dtype=torch.float32), gate.new_empty(
        gate.shape[:-1], dtype=torch.float32
    )


def _gated_backward_cpu(
    g: Tensor, gate: Tensor, up: Tensor, w: Tensor | None, inverse: Tensor, act: str
) -> tuple[Tensor, Tensor]:
    g, gate, up = g.contiguous(), gate.contiguous(), up.contiguous()
    dgate, dup = _gated_backward_fake(g, gate, up, w, inverse, act)
    _native.gated_backward(
        act,
        g.data_ptr(),
        gate.data_ptr(),
        up.data_ptr(),
        _rounds(gate),
        _address(w),
        inverse.data_ptr(),
        inverse.numel(),
        g.shape[-1],
        dgate.data_ptr(),
        dup.data_ptr(),
    )
    return dgate, dup


def _gated_backward_fake(
    g: Tensor, gate: Tensor, up: Tensor, w: Tensor | None, inverse: Tensor, act: str
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(gate), torch.empty_like(up)


def _rotate_cpu(x: Tensor, cos: Tensor, sin: Tensor, sign: float, to_bfloat16: bool) -> Tensor:
    x = x.contiguous()
    y = _rotate_fake(x, cos, sin, sign, to_bfloat16)
    b, t, h, e = x.shape
    _native.rotate(
        x.data_ptr(),
        _rounds(x),
        cos.data_ptr(),
        sin.data_ptr(),
        sign,
        b * t,
        t,
        h,
        e,
        to_bfloat16,
        y.data_ptr(),
    )
    return y


def _rotate_fake(x: Tensor, cos: Tensor, sin: Tensor, sign: float, to_bfloat16: bool) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.bfloat16 if to_bfloat16 else torch.float32)


def _rounds(x: Tensor) -> bool:
    if x.dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"rows must be float32 or bfloat16, not {x.dtype}")
    return x.dtype is torch.bfloat16


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _operator(schema: str, cpu: Any, fake: Any) -> Any:
    name = schema.partition("(")[0]
    _library.define(schema, tags=torch.Tag.pt2_compliant_tag)
    _library.impl(name, cpu, "CPU")
    torch.library.register_fake(f"sterna::{name}", fake, lib=_library)
    return getattr(torch.ops.sterna, name).default


_rms_norm = _operator(
    "rms_norm(Tensor x, Tensor w, float eps) -> (Tensor, Tensor)", _rms_norm_cpu, _rms_norm_fake
)
_rms_norm_backward = _operator(
    "rms_norm_backward(Tensor g, Tensor x, Tensor w, Tensor inverse, Tensor? residual) -> Tensor",
    _rms_norm_backward_cpu,
    _rms_norm_backward_fake,
)
_gated = _operator(
    "gated(Tensor gate, Tensor up, Tensor? w, float eps, str act) -> (Tensor, Tensor)",
    _gated_cpu,
    _gated_fake,
)
_gated_backward = _operator(
    "gated_backward(Tensor g, Tensor gate, Tensor up, Tensor? w, Tensor inverse, str act)"
    " -> (Tensor, Tensor)",
    _gated_backward_cpu,
    _gated_backward_fake,
)
_rotate = _operator(
    "rotate(Tensor x, Tensor cos, Tensor sin, float sign, bool to_bfloat16) -> Tensor",
    _rotate_cpu,
    _rotate_fake,
)
