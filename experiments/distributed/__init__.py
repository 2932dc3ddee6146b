"""Training over several processes with `jax.distributed`."""
