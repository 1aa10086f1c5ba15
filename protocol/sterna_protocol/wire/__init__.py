"""Bytes and their meaning."""
