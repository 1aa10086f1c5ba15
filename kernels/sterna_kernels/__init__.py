"""Ternary matrix products on a CPU: 2-bit weights, int8 activations, one layout for both directions."""

from sterna_kernels import reference
from sterna_kernels.int8 import Int8Matrix, int8_matmul, int8_matmul_t
from sterna_kernels.layout import MAX_SIDE, packed_nbytes
from sterna_kernels.matrix import TernaryMatrix
from sterna_kernels.products import matmul, matmul_t, use_variant, variant, variants

__all__ = [
    "MAX_SIDE",
    "Int8Matrix",
    "TernaryMatrix",
    "int8_matmul",
    "int8_matmul_t",
    "matmul",
    "matmul_t",
    "packed_nbytes",
    "reference",
    "use_variant",
    "variant",
    "variants",
]
