"""What every family's sparse vision needs: few lengths, and arrays of which some rows are new."""

import mlx.core as mx
import numpy as np


def padded(items: np.ndarray, most: int) -> np.ndarray:
    """Repeat the last of `items` up to one of few lengths (1, 2, 3, 4, 6, 8, 12, 16, ...), at most `most`.

    Some of MLX's devices plan a kernel for each new shape; few shapes are planned once. Whoever writes the results into
    place writes equal values twice.
    """
    power = 1 << (len(items) - 1).bit_length()
    length = 3 * power // 4 if len(items) <= 3 * power // 4 and power > 2 else power
    return np.pad(items, (0, max(0, min(length, most) - len(items))), 'edge')


def patches(places: np.ndarray, each: int) -> mx.array:
    """Rows of the patches of cells, where all patches of a cell follow each other: mx (places * each,)."""
    return mx.array((places[:, None] * each + np.arange(each)).reshape(-1))


def written(kept: mx.array, rows: mx.array, new: mx.array, axis: int = 0) -> mx.array:
    """A copy of an array with some rows of one of its first two axes replaced."""
    copied = mx.array(kept)
    if axis:
        copied[:, rows] = new
    else:
        copied[rows] = new
    return copied
