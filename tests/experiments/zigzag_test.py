"""Closed forms of zig-zags against brute force and against the library, and the command that writes the figures."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from experiments.studies.zigzag import (
    command,
    comparison,
    digits,
    quadratic,
    regression,
    strongly_convex,
    theory,
    toy,
    trajectories,
)


def two_stage_on_the_quadratic(w, x, a, steps):
    """½w² with learning rate x, from the definition: the gradient is w itself."""
    for _ in range(steps):
        g = w
        g_trial = w - x * g
        w = w - x * (a * g + (1 - a) * g_trial)
    return w


def test_the_condition_of_theorem_2_is_necessary_and_not_sufficient():
    a, x = np.meshgrid(np.arange(0.0103, 1, 0.0097), np.arange(0.0151, 6, 0.0237))
    condition, better = theory.theorem_2_condition(x, a), np.abs(theory.factor(x, a)) < np.abs(1 - x)
    assert np.all(condition[better])
    assert np.mean(better[condition]) < 0.9


def test_the_bound_of_theorem_1_is_that_of_the_paper():
    """L = μ = 3, from the appendix: ½ (L + L³η² - 2 μ² η) Δ²."""
    L, w = 3.0, -0.7
    for eta in (0.05, 1 / 3, 0.5, 0.9):
        for a in (0.3, 0.6, 0.9):
            after = two_stage_on_the_quadratic(w, eta * L, a, 1)
            bound = 0.5 * (L + L**3 * eta**2 - 2 * L**2 * eta) * max(abs(w), abs(after)) ** 2
            assert bound / (L * w**2 / 2) == pytest.approx(theory.theorem_1_bound(eta * L, a), abs=1e-12)


@pytest.mark.parametrize("x", [0.3, 1.0, 1.2, 2.0, 3.7, 9.0])
def test_the_best_a_has_the_smallest_factor(x):
    a = np.linspace(0, 1, 100_001)[1:]
    assert theory.best_a(x) == pytest.approx(a[np.argmin(np.abs(two_stage_on_the_quadratic(1.0, x, a, 1)))], abs=2e-5)


@pytest.mark.parametrize("condition_number", [1.0, 2.0, 10.0, 100.0])
def test_the_best_pair_beats_all_others_on_a_spectrum(condition_number):
    curvatures = np.linspace(1 / condition_number, 1, 401)

    def worst(eta, a):
        return np.max(np.abs(two_stage_on_the_quadratic(1.0, eta * curvatures, a, 1)))

    best = worst(*theory.best_learning_rate_and_a(1 / condition_number, 1.0))
    others = [worst(eta, a) for eta in np.linspace(0.5, 9, 120) for a in np.linspace(0.5, 1, 120)]
    assert best <= min(others) + 1e-12
    assert best > min(others) - 0.05
    kappa = condition_number
    assert best == pytest.approx((kappa - 1) ** 2 / (kappa**2 + 6 * kappa + 1), abs=1e-12)
    two_steps = np.max(np.abs(two_stage_on_the_quadratic(1.0, 2 / (1 + 1 / kappa) * curvatures, 1.0, 2)))
    assert two_steps == pytest.approx(((kappa - 1) / (kappa + 1)) ** 2, abs=1e-12)


def test_the_library_has_the_regions_of_the_closed_forms():
    x, a = np.linspace(0.0, 10.0, 41)[1:] - 0.0127, np.linspace(0.0, 1.0, 31)[1:, None] - 0.0031
    closed = {
        "laq_converges": np.broadcast_to(x < 2, (30, 40)),
        "converges": (a > 1 - 1 / x) & ((1 - a) * x**2 > x - 2),
        "beats_one_step": (x > 1) & ((1 - a) * x**2 < 2 * (x - 1)),
        "beats_two_steps": (a * x > 1) & ((2 - a) * x**2 - 3 * x + 2 > 0),
    }
    for name, region in quadratic.measured_regions(x, a[:, 0]).items():
        np.testing.assert_array_equal(region, closed[name], err_msg=name)
        assert 0 < np.mean(region) < 1


def test_the_library_contracts_the_toy_problem_as_in_closed_form():
    before, after = toy.weights(toy.A_VALUES, 2).T
    np.testing.assert_allclose(after / before, 3 - 4 * toy.A_VALUES, atol=1e-12)
    (laq,) = toy.weights([1.0], 9)
    np.testing.assert_allclose(laq, toy.START * (-1.0) ** np.arange(9), rtol=1e-12)
    assert not np.any(np.isnan(toy.weights([0.75], 9)))


def flips_from_the_definition(distance, eta, a, steps, start=0.45):
    """Rounding to the integers, plain gradient steps with look-ahead; the second half counts."""
    w, codes = start, []
    for _ in range(steps):
        codes.append(round(w))
        g = round(w) - distance
        g_trial = round(w - eta * g) - distance
        w = w - eta * (a * g + (1 - a) * g_trial)
    codes = codes[steps // 2 :]
    return sum(before != after for before, after in itertools.pairwise(codes)) / (len(codes) - 1)


@pytest.mark.parametrize("a", [1.0, 0.6, 0.65])
@pytest.mark.parametrize("distance", [0.07, 0.213, 0.391, 0.457])
def test_flips_per_step_are_those_of_the_definition(distance, a):
    for eta in (0.003, 0.05):
        assert theory.flips_per_step(distance, a) == pytest.approx(
            flips_from_the_definition(distance, eta, a, 6000), abs=2e-3
        )


@pytest.mark.parametrize("a", [0.5, 0.7, 0.9])
def test_a_target_nearer_than_1_minus_a_is_reached(a):
    for distance in (0.3 * (1 - a), 0.9 * (1 - a)):
        assert flips_from_the_definition(distance, 0.01, a, 6000) == 0


def test_a_below_a_half_leaves_a_weight_at_the_wrong_grid_point():
    assert flips_from_the_definition(0.45, 0.01, 0.4, 6000, start=0.55) == 0
    with pytest.raises(ValueError, match=r"a must be 1 or in \(1/2, 2/3\], got 0.4"):
        theory.flips_per_step(0.45, 0.4)
    with pytest.raises(ValueError, match=r"distance must be in \[0, 0.5\], got 0.6"):
        theory.flips_per_step(0.6)


def test_the_library_flips_as_often_as_the_definition():
    distances, etas, a_values = np.array([0.101, 0.313, 0.457]), np.array([0.003, 0.05]), np.array([1.0, 0.75, 0.6])
    flips, losses = regression.measure("gradient steps", etas, a_values, distances, steps=4000)
    for (i, j, k), measured in np.ndenumerate(flips):
        expected = flips_from_the_definition(distances[k], etas[j], a_values[i], 4000)
        assert measured == pytest.approx(expected, abs=2e-3)
    np.testing.assert_allclose(flips[0, 0], flips[0, 1], atol=2e-3)
    # Nothing flips: the loss is that of the nearest grid point.
    np.testing.assert_allclose(losses[2, :, 1], distances[1] ** 2 / 2, rtol=1e-12)


def test_the_strongly_convex_problems_have_the_curvatures_they_should():
    (hessians, minimisers), starts = strongly_convex.problems(10.0, 3)
    for hessian in hessians:
        np.testing.assert_allclose(hessian, hessian.T, atol=1e-6)
        np.testing.assert_allclose(np.linalg.eigvalsh(hessian), np.geomspace(0.1, 1, 20), rtol=1e-4)
    assert minimisers.shape == starts.shape == (3, 1, 20)
    assert len(np.unique(np.concatenate([minimisers, starts]))) == 120


def test_the_runs_on_strongly_convex_problems_follow_the_definition():
    """Binary weights, gradient steps, in a NumPy loop; loss and flips are means over the last quarter of the steps."""
    draws, steps = 2, 12
    (setting,) = strongly_convex.measure((10,), "binary", "gradient steps", draws=draws, steps=steps)
    (hessians, minimisers), starts = strongly_convex.problems(10, draws)

    def binary(w):
        return np.mean(np.abs(w)) * np.where(w < 0, -1, 1)

    for seed in range(draws):
        hessian, minimiser = hessians[seed].astype(float), minimisers[seed, 0].astype(float)

        def loss(w_hat, hessian=hessian, minimiser=minimiser):
            return (w_hat - minimiser) @ hessian @ (w_hat - minimiser) / 2

        for i, a in enumerate([*comparison.A_VALUES, 1.0]):
            j = setting.learning_rates.index(0.3)
            w, losses, codes = starts[seed, 0].astype(float), [], []
            for _ in range(2 * steps):
                losses.append(loss(binary(w)))
                codes.append(w < 0)
                g = hessian @ (binary(w) - minimiser)
                g_trial = hessian @ (binary(w - 0.3 * g) - minimiser)
                w = w - 0.3 * (a * g + (1 - a) * g_trial)
            flips = [np.mean(now != before) for before, now in itertools.pairwise(codes)]
            for end, last in enumerate((steps, 2 * steps)):
                part = slice(last - steps // 4, last)
                expected = np.log10(np.mean(losses[part]) / loss(binary(minimiser)))
                assert setting.log_losses[i, j, seed, end] == pytest.approx(expected, abs=1e-3)
                assert setting.flips[i, j, seed, end] == pytest.approx(np.mean(flips[last - steps // 4 - 1 : last - 1]))


def settings(log_losses):
    """A setting with one learning rate per entry of the second axis; shape (a, learning rate, seed, 2)."""
    rates = tuple(float(i) for i in range(1, log_losses.shape[1] + 1))
    return comparison.Setting("problem", "binary", "gradient steps", rates, log_losses, np.zeros_like(log_losses))


def test_comparisons_are_ratios_of_losses_at_equal_steps_and_at_the_better_of_both_lengths():
    log_losses = np.zeros((len(comparison.A_VALUES) + 1, 2, 6, 2))
    log_losses[0] = 1.0  # ten times worse at every learning rate
    log_losses[1, 0] = -1.0  # ten times better at the first
    log_losses[-1, 0, :, 1] = -2.0  # the longer runs of LAQ are better there,
    log_losses[-1, 1, :, 1] = 3.0  # and worse here
    records = {(r["a"], r["learning_rate"]): r for r in comparison.compare(settings(log_losses))}
    worse, better = comparison.A_VALUES[:2]
    for rate, ratio in ((1.0, 1000.0), (2.0, 10.0)):
        assert records[worse, rate]["steps"]["ratio"] == pytest.approx(10)
        assert records[worse, rate]["gradients"]["ratio"] == pytest.approx(ratio)
        assert records[worse, rate]["gradients"]["verdict"] == "worse"
    assert records[better, 1.0]["steps"] == {
        "ratio": pytest.approx(0.1),
        "low": pytest.approx(0.1),
        "high": pytest.approx(0.1),
        "verdict": "better",
    }
    assert records[better, 2.0]["steps"]["verdict"] == "same"
    assert comparison.counts([r["steps"] for r in records.values()]) == [1, 5, 2]


def test_learning_rates_are_chosen_on_one_half_of_the_seeds_and_compared_on_the_other():
    log_losses = np.zeros((len(comparison.A_VALUES) + 1, 2, 6, 2))
    log_losses[0, 0, :3] = -1.0  # better on the seeds that choose,
    log_losses[0, 0, 3:] = 2.0  # worse on those that count
    record = comparison.compare_at_best(settings(log_losses))[0]
    assert record["learning_rate"] == 1.0
    assert record["steps"]["ratio"] == record["gradients"]["ratio"] == pytest.approx(100)


def test_diverged_runs_count_as_the_worst_loss():
    (setting,) = strongly_convex.measure((1,), "binary", "gradient steps", draws=2, steps=200)
    assert np.all(np.isfinite(setting.log_losses))
    laq_at_three = setting.log_losses[-1, setting.learning_rates.index(3.0), :, 1]
    np.testing.assert_allclose(laq_at_three, np.log10(comparison.WORST))


def test_the_command_writes_all_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trajectories, "CASES", trajectories.CASES[:1])
    monkeypatch.setattr(regression, "STEPS", 100)
    monkeypatch.setattr(quadratic, "X_VALUES", quadratic.X_VALUES[::10])
    monkeypatch.setattr(quadratic, "A_VALUES", quadratic.A_VALUES[::10])
    for part in (strongly_convex, digits):
        monkeypatch.setattr(part, "QUANTIZERS", {"binary": part.QUANTIZERS["binary"]})
    monkeypatch.setattr(comparison, "OPTIMIZERS", {"gradient steps": comparison.OPTIMIZERS["gradient steps"]})
    command.main(["--draws", "4", "--steps", "4", "--output", str(tmp_path)])
    parts = ["trajectories", "toy", "regression", "quadratic", "strongly_convex", "digits"]
    for part in parts:
        assert (tmp_path / f"{part}.png").read_bytes().startswith(b"\x89PNG")
        assert json.loads((tmp_path / f"{part}.json").read_text())["environment"]["versions"]["jax"]
    for part in parts[2:]:
        assert (tmp_path / f"{part}.md").read_text().startswith("| ")


def test_the_command_names_a_wrong_option():
    with pytest.raises(ValueError, match="--draws must be at least 4, got 1"):
        command.ZigzagConfig(parts=("toy",), draws=1)
