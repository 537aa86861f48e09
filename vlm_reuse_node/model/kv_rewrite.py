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

"""Overwrites keys and values of some tokens in a cache whose length stays the same.

The layers of mlx-vlm add rows to their cache and get back all rows that they may look at. A stand-in for a layer's
cache writes the new rows over the old ones instead, and returns the rows of all tokens. The layers run unchanged.
"""

import mlx.core as mx
import numpy as np
from mlx_vlm.models.cache import KVCache, RotatingKVCache


def is_possible(cache: list) -> bool:
    """Whether the row of every token is the token's number: no wrapped ring, no recurrent state, nothing quantised."""
    return all(
        type(part) is KVCache or type(part) is RotatingKVCache and part.offset <= part.max_size for part in cache
    )


class RewriteCache:
    """Stands in for one layer's cache during one forward call.

    offset: tokens in the cache, which is where a layer begins to count positions.
    """

    offset: int | mx.array

    def __init__(self, part: KVCache | RotatingKVCache, rows: np.ndarray) -> None:
        """Write into `part` at these rows, (tokens,) ascending. A row that comes twice is written twice."""
        self._part = part
        self._rows = mx.array(rows)
        self._end = part.offset
        self.offset = part.offset

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write keys and values, mx (1, heads, tokens, width) each; return those of all tokens in the cache."""
        part = self._part
        part.keys[..., self._rows, :] = keys
        part.values[..., self._rows, :] = values
        return part.keys[..., : self._end, :], part.values[..., : self._end, :]


class BatchRewriteCache(RewriteCache):
    """The same for layers that take positions from their cache: there every token is a sequence of the batch.

    offset: of each token, mx (tokens,).
    """

    def __init__(self, part: KVCache | RotatingKVCache, rows: np.ndarray) -> None:
        super().__init__(part, rows)
        self.offset = self._rows

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write keys and values, mx (tokens, heads, 1, width) each; return those of all tokens for every sequence."""
        tokens = len(keys)
        all_keys, all_values = super().update_and_fetch(keys.transpose(2, 1, 0, 3), values.transpose(2, 1, 0, 3))
        return (
            mx.broadcast_to(all_keys, (tokens, *all_keys.shape[1:])),
            mx.broadcast_to(all_values, (tokens, *all_values.shape[1:])),
        )


def visible(rows: np.ndarray, length: int) -> np.ndarray:
    """Return which of `length` tokens those at `rows` see: all up to themselves. (rows, length) bool."""
    return np.arange(length) <= rows[:, None]
