"""Training: base files, the model, LoRA, and the process that runs them (torch lives here)."""
