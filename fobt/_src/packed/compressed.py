"""Text as a short string: compressed with zlib, in base64; decompressed to no more than a bound."""

from __future__ import annotations

import base64
import zlib


def compress(text: str) -> str:
    """The text, compressed; what would be longer than its bound is kept as it is, which zlib can do as well."""
    data = text.encode()
    stream = zlib.compress(data, 9)
    if len(data) > _longest_text(stream):
        stream = zlib.compress(data, 0)
    return base64.b64encode(stream).decode()


def decompress(compressed: str) -> str:
    """The inverse of `compress`. Raises a ValueError where a string is none that it gives, or its text is too long."""
    stream = base64.b64decode(compressed, validate=True)
    inflate, bound = zlib.decompressobj(), _longest_text(stream)
    try:
        data = inflate.decompress(stream, bound + 1)
    except zlib.error as error:
        raise ValueError(f"it cannot be decompressed: {error}") from None
    if len(data) > bound:
        raise ValueError(f"it must not be longer than {bound:,} bytes when it is decompressed")
    if not inflate.eof or inflate.unused_data:
        raise ValueError("what is compressed must end where the string ends")
    return data.decode()


def _longest_text(stream: bytes) -> int:
    """No file makes its reader take much more memory than its own size."""
    return 2**20 + 64 * len(stream)
