"""From an encoded image to a square of pixels, as networks for ImageNet are trained and evaluated."""

import io
import math
from typing import Any

import numpy as np
from PIL import Image

SCALE = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10


def decode(record: dict[str, Any]) -> Image.Image:
    """The image of a record in RGB, whatever it is stored as.

    Args:
        record: Encoded bytes under "image", and where it has one its name under "file_name".

    Raises:
        ValueError: The bytes are not an image, or one that is cut off.
    """
    try:
        return Image.open(io.BytesIO(record["image"])).convert("RGB")
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for some broken headers
        name = record.get("file_name", b"an image without a name").decode()
        raise ValueError(f"cannot decode {name}: {error}") from error


def random_resized_crop(record: dict[str, Any], rng: np.random.Generator, *, size: int) -> np.ndarray:
    """A random part of an image, resized to a square, mirrored with probability 1/2.

    The part has a share of the area uniform in [0.08, 1] and a ratio of width to height log-uniform in [3/4, 4/3]; its
    place is uniform. Where ten such parts do not fit into the image, it is the largest centred one with an allowed
    ratio.

    Args:
        record: As for `decode`.
        rng: Random numbers.
        size: Side of the square.

    Returns:
        uint8, shape (size, size, 3).

    References:
        Szegedy et al., `Going Deeper with Convolutions <https://arxiv.org/abs/1409.4842>`_, 2015, section 6.
    """
    image = decode(record)
    part = image.crop(random_box(*image.size, rng))
    pixels = np.asarray(part.resize((size, size), Image.Resampling.BILINEAR))
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def random_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """The part of `random_resized_crop`: left, upper, right and lower edge, in pixels."""
    for _ in range(ATTEMPTS):
        area = width * height * rng.uniform(*SCALE)
        ratio = math.exp(rng.uniform(*np.log(RATIO)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, upper, left + w, upper + h
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def centre_crop(record: dict[str, Any], *, size: int) -> np.ndarray:
    """The central square of an image whose shorter side was resized to size·256/224.

    Args:
        record: As for `decode`.
        size: Side of the square.

    Returns:
        uint8, shape (size, size, 3).
    """
    image = decode(record)
    factor = round(size * 256 / 224) / min(image.size)
    width, height = (round(factor * side) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, upper = (width - size) // 2, (height - size) // 2
    return np.asarray(image.crop((left, upper, left + size, upper + size)))
