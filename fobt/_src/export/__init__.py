"""Functions of quantized weights in other runtimes."""
