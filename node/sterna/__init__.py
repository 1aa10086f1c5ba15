"""The Sterna node."""
