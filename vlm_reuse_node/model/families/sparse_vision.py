# Copyright 2026 vlm_reuse_node maintainers
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""Shared by the families that encode some cells of a picture.

What a tower computes on its way, few array lengths, and arrays with some rows replaced.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np


@contextmanager
def recorded(layers: Iterable[tuple[Any, str]]) -> Iterator[list[mx.array]]:
    """Note what some layers of a model return while it runs: in the list that is given, in the order of the calls.

    layers: of each the module that holds it, and its name there.
    """
    found: list[mx.array] = []
    own = [(holder, name, getattr(holder, name)) for holder, name in layers]

    def noting(layer: Callable[[mx.array], mx.array]) -> Callable[[mx.array], mx.array]:
        def call(hidden: mx.array) -> mx.array:
            found.append(layer(hidden))
            return found[-1]

        return call

    try:
        for holder, name, layer in own:
            setattr(holder, name, noting(layer))
        yield found
    finally:
        for holder, name, layer in own:
            setattr(holder, name, layer)


def padded(items: np.ndarray, most: int) -> np.ndarray:
    """Repeat the last of `items` up to one of few lengths (1, 2, 3, 4, 6, 8, 12, 16, ...), at most `most`.

    Some of MLX's devices plan a kernel for each new shape; few shapes are planned once. Results of the repeated items
    are equal, so writing them into place twice does no harm.
    """
    return np.pad(items, (0, padded_length(len(items), most) - len(items)), 'edge')


def padded_length(count: int, most: int) -> int:
    """Return how many items `padded` makes of `count`."""
    power = 1 << (count - 1).bit_length()
    length = 3 * power // 4 if count <= 3 * power // 4 and power > 2 else power
    return max(count, min(length, most))


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
