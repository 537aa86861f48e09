"""New keys and values in the place of old ones, in a cache that goes on with the same length.

The layers of mlx-vlm add their rows to a cache and get back all that they may look at. A stand-in for each layer's
cache writes them where they belong instead, and returns what lies before the end: the layers run unchanged.
"""

import mlx.core as mx
import numpy as np
from mlx_vlm.models.cache import KVCache


def is_possible(cache: list) -> bool:
    """Whether every layer keeps one row of each token as computed: no ring, no recurrent state, not quantised."""
    return all(type(part) is KVCache for part in cache)


class RewrittenLayer:
    """Stands in for one layer's cache during one forward call.

    A snapshot of this cache stays one: it holds a length, and no array is shared with it.
    """

    def __init__(self, part: KVCache, rows: np.ndarray):
        """Write into `part` at these rows, (tokens,) ascending; a repeated one is written twice."""
        self._part, self._rows, self.offset = part, mx.array(rows), part.offset

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write mx (1, heads, tokens, width) each; returns those of all tokens in the cache."""
        part = self._part
        part.keys[..., self._rows, :], part.values[..., self._rows, :] = keys, values
        return part.keys[..., :self.offset, :], part.values[..., :self.offset, :]


def visible(rows: np.ndarray, length: int) -> mx.array:
    """Which of the `length` tokens those at `rows` see: all up to themselves. mx (rows, length) bool."""
    return mx.array(np.arange(length) <= rows[:, None])
