"""The Sterna protocol, without I/O."""
