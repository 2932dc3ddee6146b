"""What looking ahead does, in closed form: one weight on a quadratic, and one weight between two grid points.

On the quadratic ½Lw² without quantizer, with curvature 1 and without momentum, everything depends on x = ηL, learning
rate times curvature. A loss-aware step multiplies w by 1 - x. The trial gradient is Lw(1 - x), so a two-stage step
multiplies w by

    r(x) = 1 - x + (1 - a) x²

On ½(w - w°)ᵀH(w - w°) the same holds along every eigenvector of H, with x = ηλ for the eigenvalue λ. The toy problem
c|w|^{3/2} with exact derivatives is x = 2 everywhere, so its factor is r(2) = 3 - 4a.
"""

import numpy as np
import numpy.typing as npt


def factor(x: npt.ArrayLike, a: npt.ArrayLike) -> np.ndarray:
    """What a two-stage step multiplies w by on the quadratic: r(x) = 1 - x + (1 - a) x².

    Args:
        x: Learning rate times curvature, above 0.
        a: Backtracking coefficient in (0, 1]; 1 is loss-aware quantization.

    Returns:
        The factor.

    Example:
        >>> factor(2.0, [0.5, 0.75, 1.0])
        array([ 1.,  0., -1.])
    """
    x, a = np.asarray(x, float), np.asarray(a, float)
    return 1 - x + (1 - a) * x**2


def theorem_1_bound(x: npt.ArrayLike, a: npt.ArrayLike) -> np.ndarray:
    """The paper's bound on the loss after a step on the quadratic, in units of ½Lw².

    ½ (L₁ + L₁³η² - 2μ²η) Δ² with L₁ = μ = L and Δ = max(|w after|, |w before|) is ½Lw² (1 - x)² max(r(x)², 1). The loss
    itself is ½Lw² r(x)², so the bound is wrong where r(x)² is larger.

    Args:
        x: Learning rate times curvature, above 0.
        a: Backtracking coefficient in (0, 1].

    Returns:
        The bound.

    Example:
        >>> theorem_1_bound(1.0, 0.6), factor(1.0, 0.6) ** 2
        (np.float64(0.0), np.float64(0.16000000000000003))
    """
    return (1 - np.asarray(x, float)) ** 2 * np.maximum(factor(x, a) ** 2, 1)


def theorem_2_condition(x: npt.ArrayLike, a: npt.ArrayLike) -> np.ndarray:
    """Where the paper says that the method converges better: 2/(L₁η) - 1 < a < 1 with L₁η = x.

    Args:
        x: Learning rate times curvature, above 0.
        a: Backtracking coefficient.

    Returns:
        True where the condition holds.

    Example:
        >>> theorem_2_condition(1.5, 0.4), abs(factor(1.5, 0.4)) < abs(1 - 1.5)
        (np.True_, np.False_)
    """
    x, a = np.asarray(x, float), np.asarray(a, float)
    return (2 / x - 1 < a) & (a < 1)


def best_a(x: float) -> float:
    """The a with the smallest |r(x)|: 1 - (x - 1)/x² for x > 1, where r(x) = 0, and 1 for x ≤ 1.

    It is never below ¾, which is best at x = 2.

    Args:
        x: Learning rate times curvature, above 0.

    Returns:
        The coefficient, in [¾, 1].

    Example:
        >>> best_a(0.5), best_a(2.0), best_a(4.0)
        (1.0, 0.75, 0.8125)
    """
    return 1 - (x - 1) / x**2 if x > 1 else 1.0


def best_learning_rate_and_a(smallest: float, largest: float) -> tuple[float, float]:
    """Learning rate and a with the smallest max |r(ηλ)| over curvatures λ between two bounds.

    Every quadratic polynomial p with p(0) = 1 is r(ηλ) for some η and a, so the best one is Chebyshev's. With κ =
    largest / smallest it has the factor (κ - 1)²/(κ² + 6κ + 1) a step; two loss-aware steps, which cost as much, have
    ((κ - 1)/(κ + 1))² at their best learning rate, 2/(largest + smallest), and need about twice as many gradients for
    large κ.

    Args:
        smallest: The smallest curvature, above 0.
        largest: The largest curvature.

    Returns:
        The learning rate, from 2/L at κ = 1 to almost 8/L at large κ (L the largest curvature), and a, from ¾ to almost
        ⅞.

    Example:
        >>> best_learning_rate_and_a(1.0, 1.0)
        (2.0, 0.75)
        >>> eta, a = best_learning_rate_and_a(0.01, 1.0)
        >>> round(eta, 3), round(a, 3)
        (7.622, 0.87)
    """
    total, difference = largest + smallest, largest - smallest
    norm = 2 * total**2 - difference**2
    return 8 * total / norm, 1 - norm / (8 * total**2)


def flips_per_step(distance: float, a: float = 1.0) -> float:
    """How often a quantized weight flips whose target lies between two points of a fixed grid.

    The latent takes plain gradient steps -ηg, where g = ŵ - target and ŵ is the grid point nearest to the latent; the
    learning rate is small. With a = 1 the latent goes up by η·distance at the near grid point and down by η(1 -
    distance) at the far one, each stay at the far one lasts a single step, and the frequency is 2·distance for every η.
    Looking ahead, the step that would cross is η(distance - (1 - a)) instead, and the one back η(a - distance). So a
    target nearer than 1 - a is reached: nothing flips. Beyond, the frequency is 2 (distance - (1 - a))/(2a - 1). With a
    < ½ the step back is lost too where distance > a, and the weight stays at whichever grid point it came from.

    Args:
        distance: Of the target from the nearest grid point, in steps of the grid, in [0, ½].
        a: Backtracking coefficient: 1, or in (½, ⅔]. In between, the last formula holds only for distance ≥ a/2.

    Returns:
        Flips per step in the long run.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> flips_per_step(0.3), flips_per_step(0.3, 0.6), round(flips_per_step(0.45, 0.6), 3)
        (0.6, 0.0, 0.5)

    References:
        Nagel, Fournarakis, Bondarenko, Blankevoort, Overcoming Oscillations in Quantization-Aware Training, ICML 2022,
        for a = 1.
    """
    if not 0 <= distance <= 0.5:
        raise ValueError(f"distance must be in [0, 0.5], got {distance!r}.")
    if not (0.5 < a <= 2 / 3 or a == 1):
        raise ValueError(f"a must be 1 or in (1/2, 2/3], got {a!r}.")
    return 2 * max(0.0, distance - (1 - a)) / (2 * a - 1)
