"""Ternary matrix products on a CPU: 2-bit weights, int8 activations, one layout for both directions."""

from sterna_kernels import reference
from sterna_kernels.layout import MAX_SIDE, packed_nbytes
from sterna_kernels.matrix import TernaryMatrix
from sterna_kernels.products import matmul, matmul_t, use_variant, variant, variants

__all__ = [
    "MAX_SIDE",
    "TernaryMatrix",
    "matmul",
    "matmul_t",
    "packed_nbytes",
    "reference",
    "use_variant",
    "variant",
    "variants",
]
