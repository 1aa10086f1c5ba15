"""Bytes and their meaning: ids, limits, canonical encoding, signing, messages, chunks."""
