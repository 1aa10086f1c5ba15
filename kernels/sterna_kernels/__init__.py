"""Ternary matrix products on a CPU."""
