"""Files that other programs read: PEFT directories, GGUF adapters, and Sterna's own, which proves itself."""
