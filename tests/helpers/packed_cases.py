"""Quantized weights for the tests of packing, made without a quantizer, and what they stand for in plain NumPy."""

import numpy as np
from grid_cases import POSITIVE_LEVELS, make

import fobt

# The grids of the other tests, and the linear ones whose codes do not divide a byte.
PACKED_GRIDS = [*POSITIVE_LEVELS, "linear(5)", "linear(6)", "linear(7)"]
GRANULARITIES = {
    "tensor": fobt.per_tensor(),
    "channel": fobt.per_channel(),
    "rows": fobt.per_channel(0),
    "both axes": fobt.per_channel((-2, -1)),
    "blocks": fobt.per_block(3),
    "blocks of columns": fobt.per_block(2, axis=-1),
    "one block": fobt.per_block(1000),
}


def bits_of(grid):
    """Bits of a code."""
    return {"binary": 1, "ternary": 2}.get(grid) or int(grid.split("(")[1].rstrip(")"))


def random_codes(grid, shape, seed=0):
    """Codes of a grid, all of them equally likely."""
    rng = np.random.default_rng(seed)
    largest = max(1, 2 ** (bits_of(grid) - 1) - 1)
    codes = rng.integers(-largest, largest + 1, shape)
    return np.where(codes > 0, 1, -1).astype(np.int8) if grid == "binary" else codes.astype(np.int8)


def quantized(grid, shape=(7, 5), granularity="tensor", seed=0, dtype=np.float32, **options):
    """Random quantized weights of a matrix, or with one scale per tensor of any shape."""
    quantizer = make(grid, granularity=GRANULARITIES[granularity], **options)
    lengths = {
        "tensor": (),
        "channel": (1, *shape[1:]),
        "rows": (*shape[:1], 1),
        "both axes": shape,
        "blocks": (-(-shape[0] // 3) if shape else 0, *shape[1:]),
        "blocks of columns": (*shape[:1], -(-shape[-1] // 2) if shape else 0),
        "one block": (1, *shape[1:]),
    }[granularity]
    lengths = lengths if quantizer.scales == 1 else (2, *lengths)
    wide = np.promote_types(np.float32, np.dtype(dtype) if np.dtype(dtype).kind == "f" else np.float32)
    return fobt.Quantized(
        codes=random_codes(grid, shape, seed),
        scale=np.random.default_rng(seed + 1).uniform(0.5, 2, lengths).astype(wide),
        grid=quantizer.grid,
        granularity=quantizer.granularity,
        scales=quantizer.scales,
        dtype=np.dtype(dtype),
    )


def fields_of(codes, grid):
    """What is stored of each code, in C order."""
    codes = np.asarray(codes, int).ravel()
    return [(c + 1) // 2 if grid == "binary" else c + 2 ** (bits_of(grid) - 1) - 1 for c in codes.tolist()]


def bytes_of(codes, grid, base3=True):
    """The packed codes, from the definition of the layout."""
    fields, bits = fields_of(codes, grid), bits_of(grid)
    if bits == 2 and base3:
        return bytes(sum(u * 3**i for i, u in enumerate(fields[k : k + 5])) for k in range(0, len(fields), 5))
    stream = sum(u << i * bits for i, u in enumerate(fields))
    return stream.to_bytes(-(-len(fields) * bits // 8), "little")


def weights_of(tensor, grid):
    """The weights of a matrix, in float64, one by one."""
    levels = {
        **POSITIVE_LEVELS,
        **{f"linear({b})": [c / (2 ** (b - 1) - 1) for c in range(1, 2 ** (b - 1))] for b in (5, 6, 7)},
    }
    name = next(key for key, value in GRANULARITIES.items() if value == tensor.granularity)
    codes, scale = np.asarray(tensor.codes), np.asarray(tensor.scale, np.float64)
    weights = np.zeros(codes.shape)
    for i, j in np.ndindex(*codes.shape):
        place = {
            "tensor": (),
            "channel": (0, j),
            "rows": (i, 0),
            "both axes": (i, j),
            "blocks": (i // 3, j),
            "blocks of columns": (i, j // 2),
            "one block": (0, j),
        }[name]
        alpha = scale[place] if tensor.scales == 1 else scale[(int(codes[i, j] < 0), *place)]
        code = int(codes[i, j])
        weights[i, j] = alpha * np.sign(code) * ([0.0, *levels[grid]][abs(code)])
    return weights


def saved(path, *args, **kwargs):
    """The content of a file that has been saved."""
    fobt.packed.save_packed(path, *args, **kwargs)
    return fobt.packed.load_packed(path)
