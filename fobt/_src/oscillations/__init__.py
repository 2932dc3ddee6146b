"""Zig-zagging of codes: seen, frozen, dampened, and what it does to batch statistics."""
