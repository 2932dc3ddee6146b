"""Every public function under JAX's strict modes: of dtypes, NaN and infinity, leaked tracers, and without jit.

Which dtypes are promoted and what leaks is seen while tracing, so there is nothing to compile for these modes.
"""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fobt


@contextlib.contextmanager
def together(*contexts):
    with contextlib.ExitStack() as entered:
        for context in contexts:
            entered.enter_context(context)
        yield


strict = functools.partial(jax.numpy_dtype_promotion, "strict")
TRACED_MODES = {
    "float32": (strict, "float32"),
    "bfloat16": (strict, "bfloat16"),
    "float32, x64": (lambda: together(strict(), jax.enable_x64(True)), "float32"),
    "float64, x64": (lambda: together(strict(), jax.enable_x64(True)), "float64"),
    "standard promotion, x64": (lambda: jax.enable_x64(True), "float32"),
    "leaks": (jax.checking_leaks, "float32"),
}
no_nan_no_inf = lambda: together(jax.debug_nans(True), jax.debug_infs(True))  # noqa: E731
RUN_MODES = {
    "NaN and infinity": no_nan_no_inf,
    "NaN and infinity in every operation": lambda: together(no_nan_no_inf(), jax.disable_jit()),
}

WEIGHTS = np.array([[0.9, -0.4, 0.1], [-1.2, 0.3, 0.0], [0.2, 0.7, -2.0], [0.6, -0.8, 0.05]])
BLOCKS = fobt.per_block(3)
TERNARY = fobt.ternary()


def params_of(dtype):
    return {"kernel": jnp.asarray(WEIGHTS, dtype), "bias": jnp.zeros(3, dtype)}


def loss_fn(weights):
    return jnp.sum(jnp.square(weights["kernel"] - 0.5)) + jnp.sum(weights["bias"])


def projections(make, *granularities, **options):
    """A call with curvature, the weights that it stands for, and a rounding with the same scale, for each granularity.

    All solvers have each one of them.
    """

    def case(params):
        results = []
        for granularity in granularities:
            quantizer = make(granularity=granularity, **options)
            quantized = quantizer(params["kernel"], jnp.abs(params["kernel"]))
            results.append((quantized.dequantize(), quantizer.round_to_nearest(params["kernel"], quantized.scale)))
        return results

    return case


def updated(tx, params):
    """Params and state after an update; optimizers of Optax that keep Adam's moments fail in strict modes."""
    state = tx.init(params)
    value, grads, grad_fn = fobt.value_and_grad(loss_fn, TERNARY)(params, state)
    updates, state = optax.with_extra_args_support(tx).update(grads, state, params, grad_fn=grad_fn)
    return value, optax.apply_updates(params, updates), state


def trained(params):
    training = fobt.Training(optax.rmsprop(0.1), TERNARY)
    params, state, value = training.step(loss_fn)(params, training.init(params))
    return value, training.weights(params, state)


def packed_and_back(params):
    trees = [fobt.quantize(params, None, quantizer) for quantizer in (TERNARY, fobt.logarithmic(3))]
    packed = [fobt.packed.pack(tree) for tree in trees]
    return [(fobt.dequantize(tree), fobt.packed.unpack(tree)["kernel"].dequantize()) for tree in packed]


def products(params):
    x = jnp.ones((2, 4), params["kernel"].dtype)
    quantizers = (fobt.ternary(scale_per_sign=True), fobt.logarithmic(3, granularity=BLOCKS))
    return [fobt.packed.packed_matmul(x, fobt.packed.pack(quantizer(params["kernel"]))) for quantizer in quantizers]


def tracked(params):
    optimizer = fobt.oscillations.track_oscillations(optax.rmsprop(0.1), TERNARY)
    method = fobt.oscillations.track_oscillations(
        fobt.forward_backtrack(0.1, TERNARY), TERNARY, full_precision_gradient=True
    )
    return [fobt.oscillations.oscillation_metrics(updated(tx, params)[2]) for tx in (optimizer, method)]


def frozen(params):
    schedule = lambda count: jnp.asarray(0.1, jnp.result_type(float))  # noqa: E731
    thresholds = (0.1, schedule)
    optimizers = [
        fobt.oscillations.freeze_oscillations(optax.rmsprop(0.1), TERNARY, threshold) for threshold in thresholds
    ]
    return [fobt.oscillations.is_frozen(updated(tx, params)[2]) for tx in optimizers]


def optimistic(params):
    tx = fobt.optimistic(fobt.forward_backtrack(0.1, TERNARY, weight_bounds=(-1, 1)))
    state = tx.init(params)
    grads = jax.grad(loss_fn)(fobt.quantized_trial_params(params, state, TERNARY, tx))
    updates, state = tx.update(grads, state, params)
    return fobt.quantized_trial_params(optax.apply_updates(params, updates), state, TERNARY, tx)


def annealed(params):
    training = fobt.Training(fobt.anneal(optax.rmsprop(0.1), TERNARY, lambda steps: 0.5))
    params, state, _ = training.step(loss_fn)(params, training.init(params))
    return fobt.annealed_params(params, state, TERNARY)


def folded(params):
    gain = jnp.ones_like(params["bias"])
    kernels = (params["kernel"], TERNARY(params["kernel"]), fobt.linear(3, granularity=BLOCKS)(params["kernel"]))
    return [fobt.fold_batch_norm(kernel, 0 * gain, gain, gain, gain, epsilon=1e-5) for kernel in kernels]


def rules(params):
    quantizer = fobt.per_leaf(("kernel", fobt.linear(3, granularity=fobt.per_tensor())), default=fobt.full_precision())
    state = optax.rmsprop(0.1).init(params)
    given = fobt.Curvature(jax.tree.map(jnp.ones_like, params))
    maps = fobt.linear_maps(TERNARY, ("bias", fobt.full_precision()), stacked=".*")
    quantized = [fobt.quantize(params, state, each) for each in (quantizer, maps)]
    return [*quantized, fobt.quantized_params(params, given, quantizer)]


def calibrated(params):
    optimizer, batch = optax.rmsprop(0.1), (jnp.ones_like(params["kernel"]),)
    state = optimizer.init(params)
    return fobt.calibrate(optimizer, lambda weights, x: jnp.sum(weights["kernel"] * x), params, state, [batch])


def rounded(params):
    def loss(x, range):
        range = fobt.moving_average_range(range, x, 0.5)
        return jnp.sum(fobt.fake_quantize(x, range) + fobt.fake_quantize(x, range, bits=4, symmetric=True))

    return jax.value_and_grad(loss, argnums=(0, 1))(params["kernel"], jnp.array([-1.0, 2.0], jnp.float32))


TRACED = {
    "calibrate": calibrated,
    "fake_quantize, moving_average_range": rounded,
    "binary, per_tensor, per_channel, per_block": projections(
        fobt.binary, fobt.per_tensor(), fobt.per_channel(), BLOCKS
    ),
    "ternary, Quantizer, Quantized": projections(fobt.ternary, fobt.per_tensor(), scale_per_sign=True),
    "linear": projections(functools.partial(fobt.linear, 3), BLOCKS, solver="exact"),
    "logarithmic": projections(functools.partial(fobt.logarithmic, 3), fobt.per_channel(), solver="alternating"),
    "quantize, quantized_params, Curvature, per_leaf, linear_maps, full_precision": rules,
    "Training": trained,
    "pack, unpack, dequantize, Packed": packed_and_back,
    "packed_matmul": products,
    "value_and_grad, bound_weights": lambda params: updated(
        optax.chain(optax.rmsprop(0.1), fobt.bound_weights((-1, 1), TERNARY)), params
    ),
    "forward_backtrack, adam_preconditioner, Preconditioner": lambda params: updated(
        fobt.forward_backtrack(0.1, TERNARY, every=2), params
    ),
    "forward_backtrack around an optimizer": lambda params: updated(
        fobt.forward_backtrack(optax.rmsprop(0.1), TERNARY), params
    ),
    "anneal, annealed_params": annealed,
    "optimistic, quantized_trial_params": optimistic,
    "track_oscillations, oscillation_metrics, OscillationState": tracked,
    "freeze_oscillations, is_frozen": frozen,
    "dampening_loss": lambda params: jax.value_and_grad(fobt.oscillations.dampening_loss)(params, None, TERNARY),
    "fold_batch_norm": folded,
}


def post_training(params, folder):
    return fobt.lapq(loss_fn, params, fobt.linear(3), max_evaluations=1)


def statistics(params, folder):
    def update_fn(stats, batch):
        return {"mean": 0.9 * stats["mean"] + 0.1 * jnp.mean(batch).astype(stats["mean"].dtype)}

    return fobt.reestimate_batch_stats(update_fn, {"mean": params["bias"][0]}, [params["kernel"]])


def files(params, folder):
    path = folder / "weights.safetensors"
    fobt.packed.save_packed(path, fobt.quantize(params, None, TERNARY))
    loaded = fobt.packed.load_packed(path)
    return loaded.weights(), loaded.packed(), loaded.quantized(), str(fobt.packed.size_report(path))


def figure(params, folder):
    tx = fobt.oscillations.track_oscillations(optax.rmsprop(0.1), TERNARY)
    return fobt.oscillations.plot_oscillations([fobt.oscillations.oscillation_metrics(tx.init(params))])


def exported(convert, params, folder):
    quantized = fobt.quantize(params, None, fobt.linear(3))
    return convert(lambda weights, x: x @ weights["kernel"], quantized, jnp.ones((2, 4), jnp.float32))


def llama(params, folder):
    quantized = {"kernel": fobt.linear(3)(jnp.tile(params["kernel"].astype(jnp.float32), 32))}
    return fobt.export.to_gguf(lambda weights: weights, quantized, {})


def report(params, folder):
    return str(fobt.export.operator_report(exported(FAST, params, folder)))


FAST = functools.partial(fobt.export.to_onnx, form="fast")
CONCRETE = {
    "lapq, LapqResult": post_training,
    "reestimate_batch_stats": statistics,
    "save_packed, load_packed, PackedFile, PackedArray": files,
    "choices": lambda params, _: str(fobt.choices(TERNARY, params)),
    "size_report, SizeReport, LeafSize": lambda params, _: str(
        fobt.packed.size_report(fobt.quantize(params, None, TERNARY))
    ),
    "plot_oscillations": figure,
    "to_onnx": functools.partial(exported, fobt.export.to_onnx),
    "to_litert": functools.partial(exported, fobt.export.to_litert),
    "to_gguf": llama,
    "operator_report, OperatorReport, LeafOperator": report,
}


@pytest.mark.parametrize("mode", TRACED_MODES)
@pytest.mark.parametrize("names", TRACED)
def test_traced(names, mode):
    context, dtype = TRACED_MODES[mode]
    with context():
        jax.eval_shape(lambda: jax.tree.leaves(TRACED[names](params_of(dtype))))


@pytest.mark.parametrize("mode", RUN_MODES)
@pytest.mark.parametrize("names", TRACED)
def test_run(names, mode):
    params = params_of("float32")
    with RUN_MODES[mode](), jax.transfer_guard("disallow") if "every" not in mode else contextlib.nullcontext():
        jax.block_until_ready(jax.jit(lambda params: jax.tree.leaves(TRACED[names](params)))(params))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["float32, x64", *RUN_MODES])
@pytest.mark.parametrize("names", CONCRETE)
def test_of_concrete_arrays(names, mode, tmp_path):
    with RUN_MODES[mode]() if mode in RUN_MODES else TRACED_MODES[mode][0]():
        CONCRETE[names](params_of("float32"), tmp_path)


def test_no_public_name_is_missing():
    covered = {name for names in (*TRACED, *CONCRETE) for name in names.split(", ") if " " not in name}
    assert covered == {
        name
        for space in (fobt, fobt.oscillations, fobt.packed, fobt.export)
        for name in space.__all__
        if callable(getattr(space, name))
    }
