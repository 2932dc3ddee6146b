"""Every public function under JAX's strict modes: of dtypes, of ranks, of NaN, of tracers, of transfers."""

import contextlib
import inspect
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fobt

pytestmark = pytest.mark.usefixtures("compile_fast")

MODES = {
    "strict dtypes": lambda: jax.numpy_dtype_promotion("strict"),
    "strict dtypes, x64": lambda: stack(jax.numpy_dtype_promotion("strict"), jax.enable_x64(True)),
    "x64": lambda: jax.enable_x64(True),
    "NaN": lambda: jax.debug_nans(True),
    "infinity": lambda: jax.debug_infs(True),
    "leaks": jax.checking_leaks,
    "without jit": jax.disable_jit,
    "transfers": lambda: jax.transfer_guard("disallow"),
}


@contextlib.contextmanager
def stack(*contexts):
    with contextlib.ExitStack() as entered:
        for context in contexts:
            entered.enter_context(context)
        yield


WEIGHTS = np.float32([[0.9, -0.4, 0.1], [-1.2, 0.3, 0.0], [0.2, 0.7, -2.0], [0.6, -0.8, 0.05]])
GRIDS = {
    "binary": fobt.binary,
    "ternary": fobt.ternary,
    "linear": lambda **kwargs: fobt.linear(3, **kwargs),
    "logarithmic": lambda **kwargs: fobt.logarithmic(3, **kwargs),
}
GRANULARITIES = {"per_tensor": fobt.per_tensor(), "per_channel": fobt.per_channel(), "per_block": fobt.per_block(3)}


def params():
    return {"kernel": jnp.array(WEIGHTS), "bias": jnp.zeros(3, jnp.float32)}


def projections(grid):
    """One grid with all solvers and granularities."""
    solvers = [None] if grid == "binary" else ["exact", "histogram", "alternating"]
    for solver, granularity in itertools.product(solvers, GRANULARITIES.values()):
        options = {} if solver is None else {"solver": solver}
        quantizer = GRIDS[grid](granularity=granularity, **options)
        quantized = quantizer(jnp.array(WEIGHTS), jnp.abs(jnp.array(WEIGHTS)))
        yield quantized, quantized.dequantize(), quantizer.round_to_nearest(jnp.array(WEIGHTS), quantized.scale)


def loss_fn(weights):
    return jnp.sum(jnp.square(weights["kernel"] - jnp.float32(0.5))) + jnp.sum(weights["bias"])


def train(tx, quantizer=fobt.ternary(), **keywords):
    weights = params()
    state = jax.jit(tx.init)(weights)
    value_and_grad = fobt.value_and_grad(loss_fn, quantizer)

    @jax.jit
    def step(weights, state):
        _, grads, grad_fn = value_and_grad(weights, state)
        updates, state = optax.with_extra_args_support(tx).update(grads, state, weights, grad_fn=grad_fn, **keywords)
        return optax.apply_updates(weights, updates), state

    for _ in range(2):
        weights, state = step(weights, state)
    return weights, state


CASES = {
    "binary": lambda: list(projections("binary")),
    "ternary": lambda: list(projections("ternary")),
    "linear": lambda: list(projections("linear")),
    "logarithmic": lambda: list(projections("logarithmic")),
    "forward_backtrack": lambda: train(fobt.forward_backtrack(0.1, fobt.ternary(), every=2)),
    "rmsprop": lambda: train(optax.rmsprop(0.1)),
    "track": lambda: jax.jit(fobt.oscillation_metrics)(train(fobt.track_oscillations(optax.rmsprop(0.1), fobt.ternary()))[1]),
    "track_fb": lambda: fobt.oscillation_metrics(train(fobt.track_oscillations(fobt.forward_backtrack(0.1, fobt.ternary()), fobt.ternary(),full_precision_gradient=True))[1]),
    "freeze": lambda: fobt.frozen_weights(train(fobt.freeze_oscillations(optax.rmsprop(0.1), fobt.ternary(), 0.1))[1]),
    "damp": lambda: jax.value_and_grad(fobt.dampening_loss)(params(), None, fobt.ternary()),
    "dampb": lambda: jax.value_and_grad(fobt.dampening_loss)(params(), None, fobt.linear(4,granularity=fobt.per_block(3))),
    "optimistic": lambda: train(fobt.optimistic(fobt.forward_backtrack(0.1, fobt.ternary(), weight_bounds=(-1,1)))),
    "trial": lambda: fobt.trial_params(params(), optax.rmsprop(0.1).init(params()), fobt.ternary(), optax.rmsprop(0.1)),
    "bound": lambda: train(optax.chain(optax.rmsprop(0.1), fobt.bound_weights((-1,1),fobt.ternary()))),
    "quantize": lambda: (fobt.quantize(params(), optax.rmsprop(0.1).init(params()), fobt.logarithmic(3)), fobt.quantized_params(params(), None, fobt.per_leaf(("kernel", fobt.linear(3))))),
    "identity": lambda: fobt.quantize(params(), None, fobt.identity()),
    "pack": lambda: [fobt.dequantize(fobt.unpack(fobt.pack(fobt.quantize(params(),None,g()),base3=b))) for g in GRIDS.values() for b in (True,False)],
    "matmul": lambda: [fobt.packed_matmul(jnp.ones((2,4),jnp.float32), fobt.pack(g(granularity=gr)(jnp.array(WEIGHTS)))) for g in GRIDS.values() for gr in GRANULARITIES.values()],
    "lapq": lambda: fobt.lapq(loss_fn, params(), fobt.linear(3), max_evaluations=5),
    "lapql": lambda: fobt.lapq(loss_fn, params(), fobt.logarithmic(3), max_evaluations=5),
    "fold": lambda: (fobt.fold_batch_norm(fobt.ternary()(jnp.array(WEIGHTS)), jnp.zeros(3,jnp.float32), jnp.ones(3,jnp.float32), jnp.ones(3,jnp.float32), epsilon=1e-5),fobt.fold_batch_norm(jnp.array(WEIGHTS), jnp.zeros(3,jnp.float32), jnp.ones(3,jnp.float32), epsilon=1e-5)),
    "reest": lambda: fobt.reestimate_batch_stats(lambda s, x: {"mean": 0.9*s["mean"]+0.1*jnp.mean(x)}, {"mean": jnp.zeros((),jnp.float32)}, [jnp.ones(3,jnp.float32)]*2),
    "plot": lambda: fobt.plot_oscillations([fobt.oscillation_metrics(fobt.track_oscillations(optax.rmsprop(0.1), fobt.ternary()).init(params()))]),
    "size": lambda: str(fobt.size_report(fobt.quantize(params(), None, fobt.ternary()))),
    "onnx": lambda: fobt.to_onnx(lambda w, x: x @ w["kernel"] + w["bias"][None], fobt.quantize(params(), None, fobt.linear(3)), jnp.ones((2,4),jnp.float32)),
    "litert": lambda: fobt.to_litert(lambda w, x: x @ w["kernel"] + w["bias"][None], fobt.quantize(params(), None, fobt.linear(3)), jnp.ones((2,4),jnp.float32)),
    "save": lambda: save(),
}
def save():
    fobt.save_packed("/tmp/s/x.safetensors", fobt.quantize(params(), None, fobt.ternary()))
    f=fobt.load_packed("/tmp/s/x.safetensors"); t=f.to_jax() if hasattr(f,'to_jax') else f.params
    return jax.tree.map(lambda x: x, t), str(fobt.size_report("/tmp/s/x.safetensors"))

@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES)
def test_modes(case, mode):
    with MODES[mode]():
        jax.block_until_ready(CASES[case]())
