"""Studies that make zig-zagging visible."""
