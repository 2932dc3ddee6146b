"""Quantizers: pure functions from weights and their curvature to the nearest quantized weights."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Hashable, Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fobt._src.quantizers import solvers
from fobt._src.quantizers.cache_chunks import fits_loops, project_in_chunks
from fobt._src.quantizers.candidates import candidates
from fobt._src.quantizers.columns import column_length, project_columns
from fobt._src.quantizers.granularity import Granularity, PerTensor, per_channel
from fobt._src.quantizers.grid import Grid
from fobt._src.quantizers.quantized import Quantized, scale_of_each
from fobt._src.quantizers.rows import Rows, project_in_rows
from fobt._src.quantizers.sample import is_sampled, sample_of_rows

Solver = Literal["exact", "candidates", "alternating"]


@dataclasses.dataclass(frozen=True)
class Quantizer:
    """The curvature-weighted projection of weights onto a grid. Made by `binary`, `ternary`, `linear`, `logarithmic`.

    For each group of weights w that shares a scale, with curvature C > 0, a call computes

        argmin over α > 0, β ∈ Qⁿ of  ½ Σᵢ Cᵢ (wᵢ - α βᵢ)²                                                          (P)

    Attributes:
      grid: the levels Q.
      granularity: which weights share a scale: `per_tensor`, `per_channel` or `per_block`.
      solver: how (P) is solved.

          - "candidates" compares some α between two sizes of the weights by what they gain, first far apart and then
            near to the best one; in a large tensor those of a sample, and then all near to the best one. Time and
            memory are linear. Up to 4 bits the objective is mostly the optimum to about 1e-4 for one scale per tensor
            and to about 1e-3 for groups, of which a single one may be far above its own where few weights count; it
            is exact where weights × levels are at most 64. With 8 bits, where the optimum is tiny, it is about 1e-2
            above it, for small groups 1e-1. A weight of little curvature does not matter, however large it is.
          - "exact" finds the global optimum by sorting, O(n L log nL) for L positive levels: for small or unsharded
            tensors.
          - "alternating" is Algorithm 2 of the AAAI paper (LATa, LAQ), at most ten rounds to a local minimum,
            from `codes` where these are given.

        The binary grid has a closed form and uses none of them.
      scales: 1, or 2 where positive and negative weights are projected separately (ternary grid).
      stacked: leading axes of a leaf along which tensors are stacked, each with scales of its own, as `granularity`
        says; the leaves of a tree that it takes by default have two axes more.

    Example:
      >>> import fobt
      >>> quantizer = fobt.ternary()
      >>> quantizer([0.9, -1.1, 0.1], curvature=[1.0, 3.0, 1.0]).dequantize()
      Array([ 1.05, -1.05,  0.  ], dtype=float32)

    References:
      Hou, Yao, Kwok, Loss-aware Binarization of Deep Networks, ICLR 2017; Hou, Kwok, Loss-aware Weight Quantization of
      Deep Networks, ICLR 2018; Ma, Zhou, Ma, Yu, Li, One-Step Forward and Backtrack, AAAI 2024, Eq. 4 and 6.
    """

    grid: Grid
    granularity: Granularity
    solver: Solver
    scales: int
    stacked: int = 0

    def __call__(
        self, weights: ArrayLike, curvature: ArrayLike | None = None, *, codes: ArrayLike | None = None
    ) -> Quantized:
        """Projects weights onto the grid.

        Sums accumulate in float32, or in float64 for float64 weights. Weights of a group that are all zero give zero
        weights: scale 1, and for the binary grid scale 0 with codes +1 (sign(0) = +1). NaN in, NaN out.

        Args:
          weights: w, floating, of any shape, also empty.
          curvature: C, broadcast to the shape of `weights`, 0, between 1e-30 and 1e30, or infinite; a positive factor,
            also one per group, does not matter. None means 1. An infinite C pins a weight, which its optimizer cannot
            move: the scale and the other codes of the group are those without it, and its code is that of the level
            nearest to it. Where C is 0 or infinite for all of a group, so that every α is as good, the scale is of the
            size of the largest magnitude. With two scales each sign is a group.
          codes: previous codes, in the shape of `weights`, from which the alternating solver starts; only their
            magnitudes are used. The other solvers do not need them.

        Returns:
          The projection.

        Raises:
          ValueError: `weights` is not floating, a shape does not match, or the granularity names an axis that the
            weights do not have.
        """
        arrays = (None if x is None else jnp.asarray(x) for x in (curvature, codes))
        return self._projection(_checked_weights(weights), *arrays)

    def round_to_nearest(self, weights: ArrayLike, scale: ArrayLike) -> Quantized:
        """Quantizes weights with a scale that is given: each code is that of the level nearest to w/α.

        Weights beyond ±α are clipped to it: on the linear grid codes are round(clip(w, -α, α) / (α/n)). The curvature
        does not matter here. Where α is 0, so are the quantized weights.

        Args:
          weights: w, floating and finite, of any shape, also empty.
          scale: α ≥ 0, in the shape in which `Quantized` stores it, () for one scale per tensor.

        Returns:
          The quantized weights, with that scale.

        Raises:
          ValueError: `weights` is not floating, or `scale` does not have that shape.

        Example:
          >>> import fobt
          >>> quantized = fobt.linear(3).round_to_nearest([3.0, -1.0, 0.2, 2.0], scale=1.5)
          >>> quantized.codes, quantized.scale
          (Array([ 3, -2,  0,  3], dtype=int8), Array(1.5, dtype=float32))
        """
        weights = _checked_weights(weights)
        scale = jnp.asarray(scale, np.promote_types(weights.dtype, jnp.float32))
        split, shape = self.granularity, self._scale_shape(weights)
        if scale.shape != shape:
            raise ValueError(f"scale must have shape {shape} for weights of {weights.shape}, got {scale.shape}.")
        w = split.group(weights.astype(scale.dtype))
        alpha = scale_of_each(scale, w, split, self.scales, weights.ndim)
        codes = self.grid.nearest(jnp.where(alpha == 0, 0, jnp.abs(w) / jnp.where(alpha == 0, 1, alpha)))
        return self._quantized(weights, jnp.where(w < 0, -codes, codes), scale)

    @partial(jax.jit, static_argnums=0)
    def _projection(self, weights: jax.Array, curvature: jax.Array | None, codes: jax.Array | None) -> Quantized:
        """`__call__`, in the context of the mesh of the weights, over which new arrays are then spread."""
        mesh = jax.typeof(weights).sharding.mesh
        with jax.sharding.use_abstract_mesh(mesh) if mesh.explicit_axes else contextlib.nullcontext():
            return self._project_groups(weights, curvature, codes)

    def _project_groups(self, weights: jax.Array, curvature: jax.Array | None, codes: jax.Array | None) -> Quantized:
        """`__call__`, for all groups at once."""
        dtype = np.promote_types(weights.dtype, jnp.float32)
        split = self.granularity

        def grouped(name: str, x: ArrayLike) -> jax.Array:
            try:
                return split.group(jnp.broadcast_to(jnp.asarray(x, dtype), weights.shape))
            except ValueError:
                shape = jnp.shape(x)
                raise ValueError(
                    f"{name} must broadcast to the shape of weights, {weights.shape}, got {shape}."
                ) from None

        axes = split.axes(weights.ndim)
        w = split.group(weights.astype(dtype))
        members = split.members(weights.shape, dtype) > 0
        # With explicit mesh axes the factor, which costs nothing, spreads the curvature as the weights are.
        c = (members.astype(dtype) if curvature is None else grouped("curvature", curvature)) * jnp.ones_like(w)
        previous = None if codes is None else jnp.abs(grouped("codes", codes))

        if isinstance(self.granularity, PerTensor) and self.batch_key(weights) is not None:
            return self.of_all([weights], None if curvature is None else [c])[0]
        if self.grid.spacing == "binary":
            scale = self._binary_scale(w, c, members, axes)
            signed_codes = jnp.where(w < 0, -1, 1)
        elif self.solver == "candidates" and len(axes) < w.ndim and fits_loops(w):
            by_chunks = partial(project_in_chunks, self._project_sides, axes=axes)
            signed_codes, scale = jax.lax.platform_dependent(
                w, c, members, cpu=by_chunks, default=partial(self._project_sides, axes=axes)
            )
        else:
            signed_codes, scale = self._project_sides(w, c, members, previous, axes=axes)
        scale = split.squeeze(scale) if self.scales == 1 else jnp.stack([split.squeeze(x) for x in scale])
        return self._quantized(weights, signed_codes, scale)

    def batch_key(self, weights: jax.Array) -> Hashable:
        """What tensors must have in common that `of_all` projects together; None for those that it does not take."""
        is_taken = self.solver == "candidates" and self.grid.spacing != "binary" and fits_loops(weights)
        if not is_taken or not weights.size:
            return None
        if isinstance(self.granularity, PerTensor):
            return is_sampled(weights.size, self.grid)
        return column_length(weights.shape, self.granularity)

    @partial(jax.jit, static_argnums=0)
    def of_all(self, weights: Sequence[jax.Array], curvatures: Sequence[jax.Array] | None) -> list[Quantized]:
        """`__call__` of several tensors, alike in `batch_key`, with curvatures of their shapes or without."""
        split = self.granularity
        if not isinstance(split, PerTensor):
            of_columns = dataclasses.replace(self, granularity=per_channel(), stacked=0)
            codes, scales = project_columns(of_columns, weights, curvatures, split)
        else:
            codes, scales = project_in_rows(self._project_sides, weights, curvatures, bool(self.batch_key(weights[0])))
        return [self._quantized(*of_tensor) for of_tensor in zip(weights, codes, scales, strict=True)]

    def _project_sides(
        self,
        w: jax.Array,
        c: jax.Array,
        members: jax.Array,
        previous: jax.Array | None = None,
        *,
        axes: tuple[int, ...],
        rows: Rows | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Signed codes, int8, and scales, in grouped form; with two scales along a new leading axis."""

        def project(side: jax.Array, members: jax.Array) -> tuple[jax.Array, jax.Array]:
            sampled = sample_of_rows(side, c, members, rows) if rows is not None and rows.are_sampled else None
            of_r, of_c, are_members = sampled or (side, c, members)
            unpinned = are_members & ~solvers.is_pinned(of_c)
            largest, largest_unpinned = solvers.joint_max(of_r, jnp.where(unpinned, of_r, -1), axes, rows)
            # Where all are pinned they set the scale; what is not finite shall not pass as finite; nothing has scale 0.
            largest = jnp.where(
                jnp.isfinite(largest) & (largest_unpinned >= 0), largest_unpinned, jnp.maximum(largest, 0)
            )
            problem, sample = (
                solvers.Problem(solvers.normalise(r, largest), c, members.astype(w.dtype), axes, rows=rows)
                for r, c, members in ((side, c, members), (of_r, of_c, are_members))
            )
            problem = dataclasses.replace(problem, sample=sample if sampled else None)
            return self._project(problem, largest, None if previous is None else previous * members)

        if self.scales == 1:
            codes, scale = project(jnp.abs(w), members)
            return jnp.where(w < 0, -codes, codes).astype(jnp.int8), scale
        # NaN belongs to both sides.
        positive, positive_scale = project(jnp.maximum(w, 0), ~(w <= 0))
        negative, negative_scale = project(jnp.maximum(-w, 0), ~(w >= 0))
        return (positive - negative).astype(jnp.int8), jnp.stack([positive_scale, negative_scale])

    def _scale_shape(self, weights: jax.Array) -> tuple[int, ...]:
        """The shape in which `Quantized` stores the scale of these weights."""
        split, axes = self.granularity, self.granularity.axes(weights.ndim)
        one_scale = jax.eval_shape(lambda w: split.squeeze(jnp.sum(split.group(w), axes, keepdims=True)), weights)
        return one_scale.shape if self.scales == 1 else (self.scales, *one_scale.shape)

    def _quantized(self, weights: jax.Array, signed_codes: jax.Array, scale: jax.Array) -> Quantized:
        """Codes in grouped form, as floats, and a scale as the quantized form of `weights`."""
        return Quantized(
            codes=self.granularity.ungroup(signed_codes.astype(jnp.int8), weights.shape),
            scale=scale,
            grid=self.grid,
            granularity=self.granularity,
            scales=self.scales,
            dtype=weights.dtype,
        )

    def _binary_scale(self, w: jax.Array, c: jax.Array, members: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        """The closed form, in grouped form."""
        # Maxima of the weights as they are, not of expressions of them, are the ones that XLA takes fastest on CPU. So
        # pinned weights are among them; the unit has a limit, that others do not vanish beside the largest floats.
        largest = jnp.maximum(jnp.max(w, axes, keepdims=True, initial=0), -jnp.min(w, axes, keepdims=True, initial=0))
        unit = jnp.minimum(largest, 2.0 ** (jnp.finfo(w.dtype).maxexp // 2))
        problem = solvers.Problem(solvers.normalise(jnp.abs(w), unit), c, members.astype(w.dtype), axes)
        scale = solvers.closed_form(problem, default=largest / jnp.where(unit == 0, 1, unit)) * unit
        return jnp.where(jnp.isfinite(largest), scale, largest)  # what is not finite shall not pass as finite

    def _project(
        self, problem: solvers.Problem, largest: jax.Array, codes: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Codes and scales of weights ≥ 0 whose largest is given for every group, in grouped form."""
        if self.solver == "exact":
            assigning, fitted = solvers.exact(problem, self.grid)
        elif self.solver == "candidates":
            assigning, fitted = candidates(problem, self.grid)
        else:
            assigning, fitted = solvers.alternating(problem, self.grid, codes)
        return self.grid.nearest(problem.r * (1 / assigning)), jnp.where(largest == 0, 1, fitted * largest)


def _checked_weights(weights: ArrayLike) -> jax.Array:
    weights = jnp.asarray(weights)
    if not jnp.issubdtype(weights.dtype, jnp.floating):
        # A wrapper that takes every callable for a schedule calls the quantizer with a count.
        count = (
            " Where optax.inject_hyperparams has called the quantizer as a schedule, name it: "
            "inject_hyperparams(fobt.forward_backtrack, static_args='quantizer')."
        )
        is_count = weights.ndim == 0 and jnp.issubdtype(weights.dtype, jnp.integer)
        raise ValueError(f"weights must be floating, got dtype {weights.dtype}.{count if is_count else ''}")
    return weights
