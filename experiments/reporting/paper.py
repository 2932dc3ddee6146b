"""Numbers that the paper reports, to stand beside ours: top-1 accuracy in %, one figure each, no seeds or spread given.

Source: the ablation over (a, m) in the appendix of Ma et al., AAAI 2024, arXiv:2401.16760. The period m counts epochs.
"""

from collections.abc import Mapping
from types import MappingProxyType

from experiments.methods.rows import Row

SOURCE = "Ma et al., AAAI 2024, appendix"
A_VALUES = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)

# Job and grid, then period, then one accuracy for each of A_VALUES.
ACCURACY: Mapping[tuple[str, str], Mapping[int, tuple[float, ...]]] = MappingProxyType(
    {
        ("cifar10_vgg", "binary"): {
            5: (90.05, 90.51, 90.80, 91.02, 91.50, 90.60, 90.87, 90.39),
            10: (89.85, 89.93, 90.14, 90.46, 90.83, 91.07, 90.64, 89.60),
        },
        ("mnist_mlp", "binary"): {
            5: (99.062, 99.076, 99.078, 99.081, 99.110, 99.070, 99.064, 99.057),
            10: (99.029, 99.044, 99.093, 99.078, 99.089, 99.107, 99.084, 99.043),
        },
        ("mnist_lenet5", "binary"): {
            5: (99.304, 99.339, 99.348, 99.332, 99.380, 99.354, 99.318, 99.314),
            10: (99.125, 99.150, 99.331, 99.334, 99.354, 99.351, 99.352, 99.324),
        },
        ("svhn", "binary"): {
            5: (97.81, 97.85, 97.83, 97.90, 98.13, 97.95, 97.90, 97.80),
            10: (97.75, 97.78, 97.79, 97.81, 97.86, 97.80, 97.74, 97.60),
        },
        ("imagenet_resnet18", "binary"): {
            5: (66.66, 66.70, 66.71, 66.70, 66.65, 66.59, 66.60, 66.50),
            10: (66.69, 66.73, 66.70, 66.71, 66.65, 66.50, 66.59, 66.57),
        },
        ("imagenet_resnet18", "ternary"): {
            5: (69.51, 69.59, 69.61, 69.54, 69.50, 69.49, 69.38, 69.45),
            10: (69.50, 69.62, 69.58, 69.55, 69.31, 69.49, 69.45, 69.45),
        },
    }
)


def accuracy(job: str, row: Row) -> float | None:
    """The paper's test accuracy of a row in %, or None where it has none.

    Example:
        >>> row = Row(method="forward_backtrack", grid="binary", a=0.6, every=5, every_unit="epochs")
        >>> accuracy("mnist_lenet5", row)
        99.38
    """
    if row.every is None or row.every_unit != "epochs" or row.a not in A_VALUES or row.equal_gradients:
        return None
    of_period = ACCURACY.get((job, row.grid or ""), {}).get(row.every)
    return None if of_period is None else of_period[A_VALUES.index(row.a)]
