"""Networks, losses and schedules of the experiments, against counts and values that follow from their definitions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.configs import JOBS
from experiments.core.losses import cross_entropy, squared_hinge
from experiments.core.schedules import LAQ_MNIST, PAPER_CIFAR10, PAPER_IMAGENET, PAPER_MNIST, CosineDecay
from experiments.models import NETWORKS
from experiments.models.feed_forward import digits_cnn, max_pool


def test_squared_hinge_is_the_mean_over_examples_and_classes():
    scores = jnp.array([[0.5, -2.0, 0.0], [1.5, 0.25, -0.5]])
    labels = jnp.array([0, 1])
    # Margins t·s: 0.5, 2, 0 and -1.5, 0.25, 0.5; squared violations 0.25, 0, 1 and 6.25, 0.5625, 0.25.
    np.testing.assert_allclose(squared_hinge(scores, labels), (0.25 + 0 + 1 + 6.25 + 0.5625 + 0.25) / 6, rtol=1e-6)


def test_cross_entropy_is_the_mean_negative_log_probability():
    scores = jnp.log(jnp.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])) + 7.0
    np.testing.assert_allclose(cross_entropy(scores, jnp.array([2, 1])), -np.log(0.5 * 0.3) / 2, rtol=1e-5)


@pytest.mark.parametrize("size", [4, 5])
def test_max_pool_has_the_values_and_gradients_of_flax(size: int):
    images = jax.random.normal(jax.random.key(0), (2, size, size, 3))
    weights = jax.random.normal(jax.random.key(1), (2, 2, 2, 3))

    def reference(images: jax.Array) -> jax.Array:
        return nnx.max_pool(images, window_shape=(2, 2), strides=(2, 2))

    np.testing.assert_array_equal(max_pool(images), reference(images))
    gradient, expected = (
        jax.grad(lambda x, pool=pool: jnp.sum(weights * pool(x)))(images) for pool in (max_pool, reference)
    )
    np.testing.assert_array_equal(gradient, expected)


def kernels(*channels: int) -> list[int]:
    return [9 * inputs * outputs for inputs, outputs in itertools.pairwise(channels)]


@pytest.mark.parametrize(
    ("network", "weights", "units"),
    [
        ("digits_cnn", [*kernels(1, 16, 32), 2 * 2 * 32 * 64, 64 * 10], [16, 32, 64, 10]),
        ("digits_mlp", [64 * 64, 64 * 64, 64 * 10], [64, 64, 10]),
        ("lenet5", [*kernels(1, 20, 50), 7 * 7 * 50 * 500, 500 * 10], [20, 50, 500, 10]),
        ("mlp", [784 * 2048, 2048 * 2048, 2048 * 2048, 2048 * 10], [2048, 2048, 2048, 10]),
        ("small_mlp", [784 * 256, 256 * 256, 256 * 10], [256, 256, 10]),
        (
            "vgg",
            [*kernels(3, 128, 128, 256, 256, 512, 512), 4 * 4 * 512 * 1024, 1024 * 1024, 1024 * 10],
            [128, 128, 256, 256, 512, 512, 1024, 1024, 10],
        ),
        (
            "svhn_net",
            [*kernels(3, 64, 64, 128, 128, 256, 256), 4 * 4 * 256 * 1024, 1024 * 1024, 1024 * 10],
            [64, 64, 128, 128, 256, 256, 1024, 1024, 10],
        ),
    ],
)
def test_networks_have_their_weights_and_a_normalisation_after_each(network: str, weights: list, units: list):
    shapes = nnx.eval_shape(lambda: NETWORKS[network](nnx.Rngs(0), 1.0))
    leaves = jax.tree.leaves(nnx.as_pure(nnx.state(shapes, nnx.Param)))
    assert sorted(leaf.size for leaf in leaves if leaf.ndim >= 2) == sorted(weights)
    assert sorted(leaf.size for leaf in leaves if leaf.ndim < 2) == sorted(2 * units)  # scale and shift
    averages = jax.tree.leaves(nnx.as_pure(nnx.state(shapes, nnx.BatchStat)))
    assert sorted(leaf.size for leaf in averages) == sorted(2 * units)  # mean and variance


def test_resnet18_has_the_published_number_of_parameters_and_shapes():
    model = nnx.eval_shape(lambda: NETWORKS["resnet18"](nnx.Rngs(0), 1.0))
    leaves = jax.tree.leaves(nnx.as_pure(nnx.state(model, nnx.Param)))
    assert sum(leaf.size for leaf in leaves) == 11_689_512
    assert sum(leaf.ndim == 4 for leaf in leaves) == 20
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    assert nnx.eval_shape(lambda m, x: m(x, training=False), model, images).shape == (2, 1000)


@pytest.mark.parametrize("job", JOBS)
def test_every_network_gives_one_score_per_class_at_every_width(job: str):
    config = JOBS[job]
    size = {"digits": 8, "mnist": 28, "imagenet": 64}.get(config.dataset, 32)
    channels = 3 if size in (32, 64) else 1
    for width in (1.0, 0.125):
        model = nnx.eval_shape(lambda width=width: NETWORKS[config.network](nnx.Rngs(0), width))
        images = jax.ShapeDtypeStruct((4, size, size, channels), jnp.float32)
        scores = nnx.eval_shape(lambda m, x: m(x, training=True), model, images)
        assert scores.shape == (4, 1000 if config.dataset == "imagenet" else 10)


def test_initial_weights_are_uniform_in_the_bounds_of_laq():
    model = digits_cnn(nnx.Rngs(0))
    for kernel, fans in [
        (model.convolutions[1].conv.kernel[...], 9 * 16 + 9 * 32),
        (model.hidden[0].dense.kernel[...], 128 + 64),
    ]:
        bound = np.sqrt(1.5 / fans)
        assert 0.99 * bound < jnp.max(jnp.abs(kernel)) <= bound
        np.testing.assert_allclose(jnp.std(kernel), bound / np.sqrt(3), rtol=0.03)


def test_schedules_are_those_of_the_paper_and_of_laq():
    def by_epoch(schedule, epochs: int, *of_interest: int, steps_per_epoch: float = 10) -> list[float]:
        rate = schedule.in_steps(schedule.learning_rate, epochs, steps_per_epoch)
        return [float(rate(round(steps_per_epoch * epoch))) for epoch in of_interest]

    np.testing.assert_allclose(by_epoch(PAPER_MNIST, 50, 0, 4, 5, 10, 19), [5e-3, 5e-3, 5e-4, 5e-5, 5e-6], rtol=1e-5)
    np.testing.assert_allclose(by_epoch(LAQ_MNIST, 50, 0, 14, 15, 24, 25), [1e-2, 1e-2, 1e-3, 1e-3, 1e-4], rtol=1e-5)
    np.testing.assert_allclose(by_epoch(CosineDecay(0.1), 40, 0, 20, 40), [0.1, 0.05, 0.0], rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(by_epoch(PAPER_CIFAR10, 100, 0, 5, 10), [2e-2, 2e-3, 2e-4], rtol=1e-5)
    np.testing.assert_allclose(by_epoch(PAPER_IMAGENET, 175, 0, 1, 2), 2e-4 * 0.95 ** np.arange(3), rtol=1e-5)
    # Compressed to half: the same values after half of the steps.
    np.testing.assert_allclose(by_epoch(PAPER_MNIST, 50, 0, 5, 10, steps_per_epoch=5), [5e-3, 5e-4, 5e-5], rtol=1e-5)
