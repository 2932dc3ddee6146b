"""The handwritten digits that scikit-learn ships."""

import numpy as np

from experiments.data.arrays import Arrays, Dataset


def digits() -> Dataset:
    """1,797 handwritten digits of 8×8 pixels, 1,000/297/500, stratified, centred in [-1, 1]; no download."""
    # Slow to import, and imported by every process that decodes images of another data set.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    everything = Arrays((pixels / 8.0 - 1.0).astype(np.float32).reshape(-1, 8, 8, 1), labels.astype(np.int32))
    rest, test = train_test_split(np.arange(len(labels)), test_size=500, stratify=labels, random_state=0)
    train, validation = train_test_split(rest, test_size=297, stratify=labels[rest], random_state=0)
    return Dataset(everything.take(train), everything.take(validation), everything.take(test))
