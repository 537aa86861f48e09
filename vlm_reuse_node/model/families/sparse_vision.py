"""Shared by the families that encode some cells of a picture: few array lengths, and arrays with some rows replaced."""

import mlx.core as mx
import numpy as np


def padded(items: np.ndarray, most: int) -> np.ndarray:
    """Repeat the last of `items` up to one of few lengths (1, 2, 3, 4, 6, 8, 12, 16, ...), at most `most`.

    Some of MLX's devices plan a kernel for each new shape; few shapes are planned once. Results of the repeated items
    are equal, so writing them into place twice does no harm.
    """
    power = 1 << (len(items) - 1).bit_length()
    length = 3 * power // 4 if len(items) <= 3 * power // 4 and power > 2 else power
    return np.pad(items, (0, max(0, min(length, most) - len(items))), 'edge')


def patch_rows(cells: np.ndarray, per_cell: int) -> mx.array:
    """Return the rows of all patches of cells, mx (patches,); the patches of a cell follow each other."""
    return mx.array((cells[:, None] * per_cell + np.arange(per_cell)).reshape(-1))


def written(array: mx.array, rows: mx.array, new: mx.array, axis: int = 0) -> mx.array:
    """Return a copy of an array with some rows of its first or second axis replaced."""
    copied = mx.array(array)
    if axis:
        copied[:, rows] = new
    else:
        copied[rows] = new
    return copied
