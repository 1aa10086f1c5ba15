"""Swarms in virtual time: the real state machine over a seeded network that fails, with members that lie."""
