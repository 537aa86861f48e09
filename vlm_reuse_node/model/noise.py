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

"""The noise of the arithmetic in use: how far apart two computations of one thing may be for rounding alone.

It depends on the model, the precision, the processor and the kernels of its BLAS, so it is measured, on the input that
is compared: the input is moved by one unit in the last place, each number up or down by chance, and computed again.
What that does to the result is what a rounding anywhere in the computation does: a product that was summed in another
order is the exact product of numbers a few units away. Computing the same numbers in calls of other sizes would not do
for a measure: some kernels give the same bits then, and whether it is the same is often the very question.
"""

from collections.abc import Callable
from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map

# How often the input is moved. The result follows by another amount each time; the largest counts.
MOVES = 3
# From the floor to the bound: a computation rounds at every step, the measure moves its input alone and a few times.
# Other orders of summing come to twice the floor, a single stale cell to hundreds of times (test/test_noise.py).
FACTOR = 8.0


def apart(one: Any, other: Any) -> float:
    """Largest difference between two results: arrays, or lists of arrays. NaN where either has one.

    Raises ValueError for results of different shapes.
    """
    largest = []
    for a, b in zip(arrays(one), arrays(other), strict=True):
        if a.shape != b.shape:
            raise ValueError(f'Results of shapes {a.shape} and {b.shape} were compared; expected the same shape.')
        largest.append(np.abs(a - b).max())
    return float(np.max(largest))


def floor(
    given: Any,
    compute: Callable[[Any], Any],
    *others: Callable[[Any], Any],
    distance: Callable[[Any, Any], float] = apart,
) -> float:
    """Largest distance between the result of a computation and what rounding makes of it; 0 only where the result is.

    given: the input, mx arrays of the type that the model computes in, or lists and dicts of them. compute: from such
    an input to arrays: logits, features, keys and values, or log-probabilities. others: more ways to compute the same
    that are known to be right, such as a cold pass in calls of another size. distance: of two results, see `arrays`.
    """
    result = arrays(compute(given))
    runs = [compute(moved(given, seed)) for seed in range(MOVES)] + [other(given) for other in others]
    least = moved(result, 0, _epsilon(given))  # the result itself, one unit away
    return float(np.max([distance(result, arrays(run)) for run in (*runs, least)]))


def bound(given: Any, compute: Callable[[Any], Any], distance: Callable[[Any, Any], float] = apart) -> float:
    """The distance from which on it is not noise: FACTOR times the floor, see `floor`."""
    return FACTOR * floor(given, compute, distance=distance)


def moved(given: Any, seed: int, epsilon: float | None = None) -> Any:
    """Move every number up or down by one unit in the last place, as the seed says: arrays, or lists and dicts of them.

    epsilon: the unit of numbers of size 1; None: that of each array's type. What is not a floating-point array stays.
    """
    rng = np.random.default_rng(seed)

    def move(array: Any) -> Any:
        if isinstance(array, mx.array) and mx.issubdtype(array.dtype, mx.floating):
            unit = mx.finfo(array.dtype).eps if epsilon is None else epsilon
            return array * mx.array(1 + unit * rng.choice([-1, 1], array.shape)).astype(array.dtype)
        if isinstance(array, np.ndarray) and np.issubdtype(array.dtype, np.floating):
            unit = np.finfo(array.dtype).eps if epsilon is None else epsilon
            return array * (1 + unit * rng.choice([-1, 1], array.shape))
        return array

    return tree_map(move, given)


def arrays(result: Any) -> list[np.ndarray]:
    """The arrays of a result, which is one, or lists of them: float64."""
    return [
        np.array(leaf.astype(mx.float32) if isinstance(leaf, mx.array) else leaf, np.float64)
        for leaf in _leaves(result)
    ]


def _epsilon(given: Any) -> float:
    """The unit of the coarsest type among the input's numbers."""
    return max(
        mx.finfo(leaf.dtype).eps
        for leaf in _leaves(given)
        if isinstance(leaf, mx.array) and mx.issubdtype(leaf.dtype, mx.floating)
    )


def _leaves(tree: Any) -> list[Any]:
    """The values in nested lists and dicts."""
    return [leaf for _, leaf in cast(list[tuple[str, Any]], tree_flatten(tree))]
