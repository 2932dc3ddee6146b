"""Naive float64 version of the method, written from the papers alone; imports nothing from fobt.

Plain NumPy and loops, one line per equation. "LAQ" is loss-aware quantization (Hou, Yao and Kwok, 2017 and 2018);
"Eq. n" is equation n of Ma et al., "One-Step Forward and Backtrack", AAAI 2024. The letters:

    w        full-precision weights          C      curvature, eps + sqrt(v): the papers' D times the learning rate
    alpha    scale of a group, positive      beta   codes of a group, each in Q
    w_hat    alpha * beta                    Q      allowed codes, sorted, in [-1, 1]
    (P)      the projection: minimise 1/2 sum C (w - alpha beta)^2 over alpha > 0 and beta in Q^n

Its minimiser for given codes is alpha = S1 / S2 with S1 = sum C w beta and S2 = sum C beta^2, which leaves
1/2 (sum C w^2 - S1^2 / S2): the best codes are those with the largest S1^2 / S2.
"""

# ruff: noqa: N803 - Q is the letter of the papers, as an argument too

import itertools
import math

import numpy as np

# --- The codes Q and the projection (P) of one group, a 1-D vector ------------------------------------------------


def levels(grid, bits=None):
    """Allowed codes of a grid in ascending order; the 1-bit grids are binary, the 2-bit grids ternary."""
    if grid == "binary" or (bits == 1 and grid in ("linear", "logarithmic")):
        return np.array([-1.0, 1.0])
    if grid == "ternary":
        return np.array([-1.0, 0.0, 1.0])
    n = 2 ** (bits - 1) - 1
    if grid == "linear":
        positive = [j / n for j in range(1, n + 1)]
    elif grid == "logarithmic":
        positive = [2.0**-j for j in range(n - 1, -1, -1)]
    else:
        raise ValueError(f"grid must be binary, ternary, linear or logarithmic, got {grid!r}")
    return np.array([-b for b in reversed(positive)] + [0.0, *positive])


def objective(w, curvature, w_hat):
    """What (P) minimises: 1/2 sum C (w - w_hat)^2."""
    return 0.5 * np.sum(curvature * (w - w_hat) ** 2)


def scale_given_codes(w, curvature, beta):
    """The best scale for given codes, alpha = S1 / S2, by direct sums."""
    return np.sum(curvature * w * beta) / np.sum(curvature * beta**2)


def codes_given_scale(w, alpha, Q):
    """The best codes for a given scale: the level nearest to w / alpha; halfway between two, the smaller magnitude."""
    magnitudes = Q[Q >= 0]
    beta = np.empty(len(w))
    for i in range(len(w)):
        sign = -1.0 if w[i] < 0 else 1.0  # sign(0) = +1
        beta[i] = sign * magnitudes[np.argmin(np.abs(abs(w[i]) / alpha - magnitudes))]
    return beta + 0.0  # no -0.0


def project_zero_group(w, Q):
    """What w = 0 is projected to: (1, zeros); without a zero code (binary) the closed form gives (0, ones)."""
    return (1.0, np.zeros(len(w))) if 0 in Q else (0.0, np.ones(len(w)))


def brute_force(w, curvature, Q):
    """Global optimum (alpha, beta) of (P) for a short vector: try every beta in Q^n, each with its best alpha."""
    w, curvature = np.asarray(w, np.float64), np.asarray(curvature, np.float64)
    if not np.any(w):
        return project_zero_group(w, Q)
    beta = np.array(list(itertools.product(Q[::-1], repeat=len(w))))  # one assignment a row; +1 before -1 if tied
    S1 = np.sum(curvature * w * beta, axis=1)
    S2 = np.sum(curvature * beta**2, axis=1)
    beta, alpha = beta[S1 > 0], S1[S1 > 0] / S2[S1 > 0]  # alpha > 0
    best = np.argmin(np.sum(curvature * (w - alpha[:, None] * beta) ** 2, axis=1))
    return alpha[best], beta[best]


def project_exact(w, curvature, Q):
    """Global optimum (alpha, beta) of (P): the best of all assignments that are nearest levels for some alpha.

    As 1/alpha grows from 0, the code of weight i moves up one level at each breakpoint (midpoint of two levels)/|w_i|.
    Binary has no breakpoint, which leaves the closed form beta = sign(w), alpha = sum C|w| / sum C.
    """
    w, curvature = np.asarray(w, np.float64), np.asarray(curvature, np.float64)
    if not np.any(w):
        return project_zero_group(w, Q)
    magnitudes = Q[Q >= 0]
    breakpoints = []
    for i in np.flatnonzero(w):
        for j in range(len(magnitudes) - 1):
            breakpoints.append(((magnitudes[j] + magnitudes[j + 1]) / 2 / abs(w[i]), j, i))
    breakpoints.sort()

    # S1^2 / S2 of every assignment on the way, by running sums (all terms are positive).
    S1 = np.sum(curvature * np.abs(w)) * magnitudes[0]
    S2 = np.sum(curvature) * magnitudes[0] ** 2
    gain = [S1 * (S1 / S2) if S2 > 0 else 0.0]
    for _, j, i in breakpoints:
        S1 += curvature[i] * abs(w[i]) * (magnitudes[j + 1] - magnitudes[j])
        S2 += curvature[i] * (magnitudes[j + 1] ** 2 - magnitudes[j] ** 2)
        gain.append(S1 * (S1 / S2))

    # The largest gain wins; those equal to it up to the rounding of the running sums are compared by direct sums.
    enough = max(gain) * (1 - 4 * len(gain) * np.finfo(np.float64).eps)
    best = (np.inf, None, None)
    level = np.zeros(len(w), int)
    for k in range(len(gain)):
        if k > 0:
            level[breakpoints[k - 1][2]] += 1  # this weight has passed its breakpoint
        if gain[k] >= enough:
            beta = np.where(w < 0, -1.0, 1.0) * magnitudes[level] + 0.0  # sign(0) = +1, no -0.0
            alpha = scale_given_codes(w, curvature, beta)
            best = min(best, (objective(w, curvature, alpha * beta), alpha, beta), key=lambda candidate: candidate[0])
    return best[1], best[2]


def project_alternating(w, curvature, Q, previous_beta=None):
    """Approximate solution (alpha, beta) of (P): Algorithm 2, best alpha and best beta in turn, at most 10 rounds.

    Starts from |previous_beta|; without one, or where it is zero at every nonzero weight, from |w| > 0.7 mean|w|.
    """
    w, curvature = np.asarray(w, np.float64), np.asarray(curvature, np.float64)
    if not np.any(w):
        return project_zero_group(w, Q)
    beta = np.zeros(len(w)) if previous_beta is None else np.abs(previous_beta)
    if not np.any(w * beta):
        beta = np.where(np.abs(w) > 0.7 * np.mean(np.abs(w)), 1.0, 0.0)
    alpha_old = np.inf
    for _ in range(10):
        beta_old = beta
        alpha = np.sum(curvature * np.abs(w * beta)) / np.sum(curvature * beta**2)
        beta = codes_given_scale(w, alpha, Q)
        if abs(alpha - alpha_old) <= 1e-6 * alpha or np.array_equal(np.abs(beta), np.abs(beta_old)):
            break
        alpha_old = alpha
    return scale_given_codes(w, curvature, beta), beta


def project_two_scales(w, curvature, project):
    """Ternary codes with one scale a sign, (alpha_plus, alpha_minus, beta); a sign that does not occur has scale 1.

    `project` is project_exact or project_alternating; it sees the positive, then the negative weights alone. The
    quantized weights are alpha_plus where beta = 1 and -alpha_minus where beta = -1.
    """
    w, curvature = np.asarray(w, np.float64), np.asarray(curvature, np.float64)
    alpha, beta = {}, np.zeros(len(w))
    for sign in (+1, -1):
        side = sign * w > 0
        alpha[sign] = 1.0
        if np.any(side):
            alpha[sign], beta[side] = project(w[side], curvature[side], levels("ternary"))
    return alpha[+1], alpha[-1], beta


# --- The projection of a tensor -----------------------------------------------------------------------------------


def group_slices(shape, granularity):
    """Yields, for each group of weights that shares a scale, its flat indices into the C-ordered tensor.

    granularity: ('tensor',); ('channel', axes), one group per index on these axes; ('block', size, axis), runs of at
    most `size` consecutive weights along the axis.
    """
    flat = np.arange(math.prod(shape)).reshape(shape)
    kind = granularity[0]
    if kind == "tensor":
        yield flat.ravel()
    elif kind == "channel":
        kept = [axis % len(shape) for axis in granularity[1]]
        for index in itertools.product(*(range(shape[axis]) for axis in kept)):
            where = [slice(None)] * len(shape)
            for axis, i in zip(kept, index, strict=True):
                where[axis] = i
            yield flat[tuple(where)].ravel()
    elif kind == "block":
        _, size, axis = granularity
        for line in np.moveaxis(flat, axis, -1).reshape(-1, shape[axis]):
            for start in range(0, shape[axis], size):
                yield line[start : start + size]
    else:
        raise ValueError(f"granularity must start with tensor, channel or block, got {kind!r}")


def quantize_tensor(w, curvature, Q, granularity=("tensor",), project=project_exact):
    """The quantized tensor w_hat = alpha beta, (P) solved for each group of weights that shares a scale."""
    w = np.asarray(w, np.float64)
    curvature = np.broadcast_to(np.asarray(curvature, np.float64), w.shape).ravel()
    w_hat = np.zeros(w.size)
    for group in group_slices(w.shape, granularity):
        alpha, beta = project(w.ravel()[group], curvature[group], Q)
        w_hat[group] = alpha * beta
    return w_hat.reshape(w.shape)


# --- The optimizers: dictionaries of tensors by name --------------------------------------------------------------


def initial_state(params):
    """State before the first step: t = 0 and zero moments m (`mu`) and v (`nu`)."""
    zeros = {name: np.zeros(np.shape(w)) for name, w in params.items()}
    return {"count": 0, "mu": zeros, "nu": {name: zero.copy() for name, zero in zeros.items()}}


def state_curvature(nu):
    """Curvature of the carried second moment up to a common factor, to which (P) is blind: no bias correction."""
    return np.sqrt(nu) + 1e-8


def quantized(params, state, projections):
    """Eq. 6: the weights of the forward pass, projections[name](w, C); leaves without a projection stay as they are."""
    w_hat = {}
    for name, w in params.items():
        if name in projections:
            w_hat[name] = projections[name](np.asarray(w, np.float64), state_curvature(state["nu"][name]))
        else:
            w_hat[name] = np.asarray(w, np.float64)
    return w_hat


def adam_step(params, state, grads, learning_rate, b1, b2, eps):
    """One loss-aware step (LAQ), giving (params, state): Adam with the gradients at the quantized weights."""
    t = state["count"] + 1
    w_next, mu, nu = {}, {}, {}
    for name in params:
        w, g = np.asarray(params[name], np.float64), np.asarray(grads[name], np.float64)
        mu[name] = b1 * state["mu"][name] + (1 - b1) * g
        nu[name] = b2 * state["nu"][name] + (1 - b2) * g**2
        C = eps + np.sqrt(nu[name] / (1 - b2**t))
        w_next[name] = w - learning_rate * (mu[name] / (1 - b1**t)) / C
    return w_next, {"count": t, "mu": mu, "nu": nu}


def forward_backtrack_step(
    params, state, grads, grad_fn, learning_rate, a, projections, b1, b2, eps, weight_bounds=None, weight_decay=0.0
):
    """One step forward and backtrack, giving (params, state).

    `grads` are the gradients g at the quantized weights of (params, state), and `grad_fn` maps the trial quantized
    weights to their gradients g*. `weight_bounds` clips the weights of quantized leaves, before each projection.
    `weight_decay` is decoupled, as in AdamW.
    """
    t = state["count"] + 1
    c1, c2, c2_next = 1 - b1**t, 1 - b2**t, 1 - b2 ** (t + 1)  # bias corrections c1(t), c2(t), c2(t+1)

    def clip(name, w):
        return np.clip(w, *weight_bounds) if weight_bounds is not None and name in projections else w

    w = {name: np.asarray(params[name], np.float64) for name in params}
    g = {name: np.asarray(grads[name], np.float64) for name in params}

    # One step forward.
    v1, C1, w_hat_trial = {}, {}, {}
    for name in params:
        m1 = b1 * state["mu"][name] + (1 - b1) * g[name]
        v1[name] = b2 * state["nu"][name] + (1 - b2) * g[name] ** 2
        C1[name] = eps + np.sqrt(v1[name] / c2)
        w_trial = clip(name, w[name] - learning_rate * ((m1 / c1) / C1[name] + weight_decay * w[name]))  # Eq. 5
        w_hat_trial[name] = projections[name](w_trial, C1[name]) if name in projections else w_trial  # Eq. 4

    # The trial gradient, on the same minibatch.
    g_trial = grad_fn(w_hat_trial)

    # Back to w, and the real step.
    w_next, mu, nu = {}, {}, {}
    for name in params:
        g_star = np.asarray(g_trial[name], np.float64)
        v_trial = b2 * v1[name] + (1 - b2) * g_star**2
        C_trial = eps + np.sqrt(v_trial / c2_next)
        g_blend = a * g[name] + (1 - a) * g_star  # Eq. 8
        C = a * C1[name] + (1 - a) * C_trial  # Eq. 9
        mu[name] = b1 * state["mu"][name] + (1 - b1) * g_blend
        w_next[name] = clip(name, w[name] - learning_rate * ((mu[name] / c1) / C + weight_decay * w[name]))  # Eq. 7
        nu[name] = c2 * (C - eps) ** 2  # the second moment whose curvature is C; Eq. 6 is `quantized` of the result
    return w_next, {"count": t, "mu": mu, "nu": nu}


# --- The toy problem f(w) = c |w|^(3/2) ---------------------------------------------------------------------------


def toy_derivatives(w, c):
    """First and second derivative (g, D) of c |w|^(3/2) at w != 0."""
    return 1.5 * c * np.sign(w) * abs(w) ** 0.5, 0.75 * c * abs(w) ** -0.5


def laq_toy(w, c, steps):
    """The steps + 1 iterates w, w - g/D, ... of LAQ; the projection of a single binary weight is the identity."""
    trajectory = [float(w)]
    for _ in range(steps):
        if w != 0:  # at 0, D is infinite and w stays
            g, D = toy_derivatives(w, c)
            w = w - g / D
        trajectory.append(float(w))
    return trajectory


def forward_backtrack_toy(w, c, a, steps):
    """The steps + 1 iterates of one step forward and backtrack; the projection is the identity again."""
    trajectory = [float(w)]
    for _ in range(steps):
        if w != 0:  # at 0, D is infinite and w stays
            g, D = toy_derivatives(w, c)
            w_trial = w - g / D  # Eq. 5
            g_trial, D_trial = toy_derivatives(w_trial, c)
            g_blend = a * g + (1 - a) * g_trial  # Eq. 8
            D_blend = a * D + (1 - a) * D_trial  # Eq. 9
            w = w - g_blend / D_blend  # Eq. 7
        trajectory.append(float(w))
    return trajectory
