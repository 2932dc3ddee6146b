"""Global contrast normalisation and ZCA whitening, with the constants of Pylearn2's whitened CIFAR-10.

References:
    Krizhevsky, `Learning Multiple Layers of Features from Tiny Images
    <https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf>`_, 2009.
    Goodfellow et al., `Pylearn2: a machine learning research library <https://arxiv.org/abs/1308.4214>`_, 2013: script
    make_cifar10_gcn_whitened, whose output BinaryConnect, LAB and LAQ train on.
"""

import hashlib
import logging
import os
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

CONTRAST = 55.0  # Pylearn2: CIFAR10(gcn=55.)
FILTER_BIAS = 0.1  # Pylearn2: ZCA(filter_bias=0.1)
CHUNK = 5000  # images in float64 at a time


def normalize_contrast(images: ArrayLike) -> np.ndarray:
    """Global contrast normalisation: each image x becomes s·(x - m) / ‖x - m‖.

    m is the mean over all pixels and channels of this image, s = 55 and ‖·‖ the Euclidean norm; an image of one colour
    value becomes 0.

    Args:
        images: Shape (n, height, width, channels).

    Returns:
        float32, the same shape.

    Example:
        >>> normalize_contrast(np.array([1, 2, 3, 6], np.uint8).reshape(1, 2, 2, 1)).ravel().round(2)
        array([-29.4, -14.7,   0. ,  44.1], dtype=float32)
    """
    pixels = np.asarray(images)
    vectors = pixels.reshape(len(pixels), -1).astype(np.float32)
    vectors -= vectors.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors *= CONTRAST / np.where(norms > 0, norms, 1)
    return vectors.reshape(pixels.shape)


@dataclass(frozen=True)
class Whitening:
    """The affine map y = W(x - μ) on images as vectors of length d = height·width·channels.

    Attributes:
        mean: μ, float32, shape (d,).
        matrix: W, symmetric, float32, shape (d, d).
    """

    mean: np.ndarray
    matrix: np.ndarray

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """The whitened images, float32, in the same shape."""
        vectors = images.reshape(len(images), -1) @ self.matrix
        vectors -= self.mean @ self.matrix
        return vectors.reshape(images.shape)


def fit_whitening(images: np.ndarray) -> Whitening:
    """ZCA whitening of n images: W = U diag(1/√(l + ε)) Uᵀ with ε = 0.1.

    U and l are the eigenvectors and eigenvalues of the covariance C = 1/n Σ (x - μ)(x - μ)ᵀ, μ the mean image. The
    covariance of the whitened images is U diag(l / (l + ε)) Uᵀ: close to 1 in the directions in which images vary much,
    close to 0 in the others.

    Args:
        images: float32, shape (n, height, width, channels).
    """
    vectors = images.reshape(len(images), -1)
    mean = vectors.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((len(mean), len(mean)))
    for start in range(0, len(vectors), CHUNK):
        centred = vectors[start : start + CHUNK] - mean
        covariance += centred.T @ centred / len(vectors)
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    matrix = eigenvectors / np.sqrt(eigenvalues + FILTER_BIAS) @ eigenvectors.T
    return Whitening(mean.astype(np.float32), matrix.astype(np.float32))


def cached_whitening(images: np.ndarray) -> Whitening:
    """`fit_whitening`, kept in a file for the next call with exactly these images.

    The file lies in ${XDG_CACHE_HOME:-~/.cache}/fobt; its name is a digest of the images, and of ε. A file that cannot
    be read is written again.

    Args:
        images: float32, shape (n, height, width, channels).
    """
    digest = hashlib.blake2b(np.ascontiguousarray(images).data, digest_size=16)
    digest.update(repr((images.shape, FILTER_BIAS)).encode())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fobt"
    path = folder / f"whitening-{digest.hexdigest()}.npz"
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            return Whitening(arrays["mean"], arrays["matrix"])
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):  # missing, or not as written
        whitening = fit_whitening(images)
    try:
        _save(whitening, path)
    except OSError as error:
        logging.getLogger(__name__).warning("the whitening will be computed again: cannot write %s: %s", path, error)
    return whitening


def _save(whitening: Whitening, path: Path) -> None:
    """Writes the file as a whole or not at all, as others may read it at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        try:
            np.savez(file, mean=whitening.mean, matrix=whitening.matrix)
            file.close()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
