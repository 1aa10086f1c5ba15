"""Drives the sans-IO protocol: carries out its effects, feeds it what the world answers."""
