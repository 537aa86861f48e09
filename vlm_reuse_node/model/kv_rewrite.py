"""New keys and values in the place of old ones, in a cache that goes on with the same length.

The layers of mlx-vlm add their rows to a cache and get back all that they may look at. A stand-in for each layer's
cache writes them where they belong instead, and returns what lies before the end: the layers run unchanged.
"""

import mlx.core as mx
import numpy as np
from mlx_vlm.models.cache import KVCache, RotatingKVCache


def is_possible(cache: list) -> bool:
    """Whether every token's row is where its number says: no ring that has wrapped, nothing recurrent or quantised."""
    return all(
        type(part) is KVCache or type(part) is RotatingKVCache and part.offset <= part.max_size for part in cache
    )


class RewrittenLayer:
    """Stands in for one layer's cache during one forward call."""

    def __init__(self, part: KVCache | RotatingKVCache, rows: np.ndarray):
        """Write into `part` at these rows, (tokens,) ascending; a repeated one is written twice."""
        self._part, self._rows, self._end, self.offset = part, mx.array(rows), part.offset, part.offset

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write mx (1, heads, tokens, width) each; returns those of all tokens in the cache."""
        part = self._part
        part.keys[..., self._rows, :], part.values[..., self._rows, :] = keys, values
        return part.keys[..., : self._end, :], part.values[..., : self._end, :]


class RewrittenApart(RewrittenLayer):
    """The same for layers that take positions from their cache: every token is a sequence of its own.

    offset: of each token, mx (tokens,).
    """

    def __init__(self, part: KVCache | RotatingKVCache, rows: np.ndarray):
        super().__init__(part, rows)
        self.offset = self._rows

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write mx (tokens, heads, 1, width) each; returns those of all tokens in the cache, once for each of these."""
        kept = super().update_and_fetch(*(new.transpose(2, 1, 0, 3) for new in (keys, values)))
        return tuple(mx.broadcast_to(rows, (len(keys), *rows.shape[1:])) for rows in kept)


def visible(rows: np.ndarray, length: int) -> np.ndarray:
    """Which of the `length` tokens those at `rows` see: all up to themselves. (rows, length) bool."""
    return np.arange(length) <= rows[:, None]
