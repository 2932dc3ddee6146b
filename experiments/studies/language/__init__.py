"""A small language model with weights of few bits: trained, compared, and read from."""
