"""Export to GGUF."""
