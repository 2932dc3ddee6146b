"""Text from a network that gives the logits of the next byte, one byte after the other."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

PROMPT, SAMPLE_BYTES, TEMPERATURE = b"The Congress of the United States ", 300, 0.7
# From a byte, what is kept of those before it, and its position to logits of shape (256,) and what is kept.
NextByte: TypeAlias = Callable[[int, Any, int], tuple[np.ndarray, Any]]


def generate(
    next_byte: NextByte, cache: Any, prompt: bytes, count: int, *, context: int, temperature: float, seed: int
) -> bytes:
    """A prompt and `count` bytes drawn after it, each with the probabilities softmax(logits / temperature).

    When `context` positions are filled, the last half of them starts anew, with the `cache` given here.

    Example:
        >>> counting = lambda byte, cache, position: (100.0 * (np.arange(256) == byte + 1), cache)
        >>> generate(counting, None, b"xa", 5, context=4, temperature=1.0, seed=0)
        b'xabcdef'
    """
    draws, text = np.random.default_rng(seed), bytearray(prompt)
    end = len(text) + count
    while len(text) < end:
        start, kept = max(0, len(text) - max(1, context // 2)), cache
        for position in range(min(context, end - 1 - start)):
            logits, kept = next_byte(text[start + position], kept, position)
            if start + position == len(text) - 1:
                scaled = np.asarray(logits, np.float64) / temperature
                odds = np.exp(scaled - scaled.max())
                text.append(int(draws.choice(len(odds), p=odds / odds.sum())))
    return bytes(text)


def sample(next_byte: NextByte, cache: Any, context: int) -> str:
    """The text with which a network goes on after `PROMPT`, the same in every call; what is no UTF-8 becomes �."""
    text = generate(next_byte, cache, PROMPT, SAMPLE_BYTES, context=context, temperature=TEMPERATURE, seed=0)
    return text.decode(errors="replace")
