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

"""Stand-ins for a model's caches during one forward call on a `TokenTree`.

A layer of mlx-vlm asks its cache for three things: the positions of the call's tokens (`offset`), which tokens see
which (`make_mask`), and all keys and values, once those of the call are added (`update_and_fetch`). A stand-in answers
for the tree. So the layers run unchanged. A recurrent layer is the exception: no mask keeps its tokens apart, so the
family takes it through the tree block by block (`RecurrentPass`). Afterwards `keep` cuts the real cache behind any of
the added tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_vlm.models.cache import ArraysCache, KVCache, RotatingKVCache

from vlm_reuse_node.model.token_tree import Run, TokenTree

# The attributes of a ring as they were before the live picture, by name.
RingBefore = dict[str, Any]
# Computes tokens in sequences; see `RecurrentPass.run`.
Step = Callable[[mx.array, ArraysCache], mx.array]


def is_possible(cache: list, recurrent: bool = False) -> bool:
    """Whether every layer keeps keys and values as they are: nothing quantised, and no recurrent state.

    recurrent: a recurrent state will do, too.
    """
    return all(
        type(part) is KVCache
        or (type(part) is RotatingKVCache and not part.keep)
        or (recurrent and type(part) is ArraysCache)
        for part in cache
    )


def can_rewrite(cache: list, tokens: int) -> bool:
    """Whether the last `tokens` rows can be written over: every layer keeps rows, and every ring so many."""
    return is_possible(cache) and all(type(part) is KVCache or tokens <= part.max_size for part in cache)


def can_restart(cache: list) -> bool:
    """Whether tokens are replaced by going back before them: a layer is recurrent, and the others keep all rows."""
    kinds = {type(part) for part in cache}
    return ArraysCache in kinds and kinds <= {ArraysCache, KVCache}


class PassCache(ABC):
    """Stands in for one layer's cache.

    tree: the call's tokens. offset: place of each of them, mx (tokens,).
    """

    def __init__(self, part: Any, tree: TokenTree) -> None:
        """Stand in for `part`, which holds tree.held tokens."""
        self._part, self.tree = part, tree
        self.offset: mx.array | int = mx.array(tree.places)

    @property
    @abstractmethod
    def arrays(self) -> Sequence[mx.array]:
        """What the call has computed for the cache."""

    @abstractmethod
    def keep(self, added: int) -> None:
        """Cut the cache behind so many added tokens; they follow each other. May be called again with another number.

        That holds until something else is added to the cache.
        """


class FlatPass(PassCache):
    """Stands in for a cache that keeps all rows. It writes into that cache."""

    def make_mask(self, count: int, window_size: int | None = None, return_array: bool = False) -> mx.array:
        """Over all rows."""
        return mx.array(self.tree.mask(0, window_size))

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write into the cache."""
        part, rewritten = self._part, len(self.tree.rows)
        if rewritten:
            rows = mx.array(self.tree.rows)
            part.keys[..., rows, :] = keys[..., :rewritten, :]
            part.values[..., rows, :] = values[..., :rewritten, :]
        if rewritten < keys.shape[2]:
            return part.update_and_fetch(keys[..., rewritten:, :], values[..., rewritten:, :])
        return part.keys[..., : part.offset, :], part.values[..., : part.offset, :]

    @property
    def arrays(self) -> tuple[mx.array, mx.array]:
        """All keys and values; those of the call are among them."""
        return self._part.keys, self._part.values

    def keep(self, added: int) -> None:
        """Cut the cache; see `PassCache.keep`. The rows behind are written over later."""
        self._part.offset = self.tree.held + added


class RingPass(PassCache):
    """Stands in for a cache that keeps the last rows. The ring itself changes in `keep` only."""

    def __init__(self, part: RotatingKVCache, tree: TokenTree, before: RingBefore | None) -> None:
        """Stand in for `part`, which holds tree.held tokens.

        before: the ring's attributes before the rows that are written over; needed when the ring has dropped rows since
        that these look at.
        """
        super().__init__(part, tree)
        self._kept = [] if part.keys is None else [_in_order(vars(part), name) for name in ('keys', 'values')]
        if len(tree.rows) and part.offset > part.max_size and before is not None and before['keys'] is not None:
            newer = part.offset - before['offset']
            self._kept = [
                mx.concatenate([_in_order(before, name), array[..., array.shape[2] - newer :, :]], axis=2)
                for name, array in zip(('keys', 'values'), self._kept)
            ]
        self._first = tree.held - (self._kept[0].shape[2] if self._kept else 0)
        self._all: list[mx.array] = []

    def make_mask(self, count: int, window_size: int | None = None, return_array: bool = False) -> mx.array:
        """Over the rows that are left."""
        return mx.array(self.tree.mask(self._first, window_size or self._part.max_size))

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Put them behind the rows that are left, in the order of their tokens."""
        rewritten = len(self.tree.rows)
        self._all = []
        for number, new in enumerate((keys, values)):
            added = [new[..., rewritten:, :]] if rewritten < new.shape[2] else []
            kept = self._kept[number : number + 1]
            if rewritten:
                copied = mx.array(kept[0])
                copied[..., mx.array(self.tree.rows - self._first), :] = new[..., :rewritten, :]
                kept = [copied]
            self._all.append(mx.concatenate([*kept, *added], axis=2))
        return self._all[0], self._all[1]

    @property
    def arrays(self) -> tuple[mx.array, ...]:
        """Of the rows that are left."""
        return tuple(self._all)

    def keep(self, added: int) -> None:
        """Cut the cache; see `PassCache.keep`."""
        if not added and not len(self.tree.rows) and self._part.offset == self.tree.held:
            return  # the ring is what it was
        part = self._part
        end = self.tree.held + added - self._first
        start = max(0, end - part.max_size)
        part.keys, part.values = (array[..., start:end, :] for array in self._all)
        part.offset, part._idx = self.tree.held + added, end - start


class RecurrentPass(PassCache):
    """Stands in for the cache of a recurrent layer: one state for all tokens so far. It changes in `keep` only.

    Each block of the tree starts from the state behind the block that it follows.
    """

    def __init__(self, part: ArraysCache, tree: TokenTree) -> None:
        """Stand in for `part`, which holds the state behind tree.held tokens. The tree writes over no rows."""
        super().__init__(part, tree)
        self._states = {0: list(part.cache)}  # by the number of added tokens
        self._step: Step | None = None

    def run(self, step: Step) -> mx.array:
        """Compute the call's tokens, mx (1, tokens, width): the blocks of one level of the tree as one batch.

        step: computes some sequences. It is given the numbers of their tokens, mx (sequences, longest), and a cache
        with a row of states for each. Shorter sequences are padded behind their end; then the cache has `lengths`.
        It returns mx (sequences, longest, width), and the cache then holds the states at the ends.
        `keep` may call it again.
        """
        self._step = step
        numbers, outputs = [], []
        for level in self.tree.levels:
            tokens, output = self._advance(level)
            numbers.append(tokens.ravel())
            outputs.append(output.reshape(-1, output.shape[-1]))
        # A padded sequence repeats its last token: what counts is where a token comes first.
        _, first = np.unique(np.concatenate(numbers), return_index=True)
        self._states = {end: self._states[end] for end in self._line()}
        return mx.concatenate(outputs)[mx.array(first)][None]

    @property
    def arrays(self) -> list[mx.array]:
        """The states that `keep` needs, but for those inside a block."""
        return [array for end, state in self._states.items() if end for array in state]

    def keep(self, added: int) -> None:
        """Move the cache behind so many added tokens; see `PassCache.keep`.

        A state inside a block is computed now, in the layer's recurrent part alone.
        """
        if added not in self._states:
            start, _, behind = next(run for run in self.tree.runs if run.start < added <= run.end)
            self._advance([Run(start, added, behind)])
        self._part.cache = list(self._states[added])

    def _advance(self, runs: list[Run]) -> tuple[np.ndarray, mx.array]:
        """Compute some blocks as one batch; return their tokens and what `step` made of them."""
        starts, ends, _ = np.array(runs).T
        tokens = np.minimum(starts[:, None] + np.arange((ends - starts).max()), ends[:, None] - 1)
        befores = zip(*(self._states[run.behind] for run in runs))
        states: Any = ArraysCache(len(self._part.cache))
        states.cache = [None if arrays[0] is None else mx.concatenate(list(arrays)) for arrays in befores]
        if len(set(ends - starts)) > 1:
            states.lengths = mx.array(ends - starts)
        output = self._step(mx.array(tokens), states)
        for row, run in enumerate(runs):
            self._states[run.end] = [array[row : row + 1] for array in states.cache]
        return tokens, output

    def _line(self) -> list[int]:
        """The ends of the first blocks, as far as each follows the one before it."""
        ends = [0]
        for run in self.tree.runs:
            if run.behind != ends[-1]:
                break
            ends.append(run.end)
        return ends


def stand_ins(cache: list, tree: TokenTree, before: Sequence[Any] | None = None) -> list[PassCache]:
    """Return a stand-in for each layer's cache, for one call. cache: one for which `is_possible`.

    before: see `RingPass`, one entry for each layer.
    """
    kinds = {KVCache: FlatPass, ArraysCache: RecurrentPass}
    return [
        kinds[type(part)](part, tree)
        if type(part) in kinds
        else RingPass(part, tree, before[index] if before else None)
        for index, part in enumerate(cache)
    ]


def keep(parts: list[PassCache], added: int) -> None:
    """Cut all caches behind so many added tokens; see `PassCache.keep`."""
    for part in parts:
        part.keep(added)


def _in_order(attributes: RingBefore, name: str) -> mx.array:
    """The rows of a ring in the order of their tokens."""
    array, index, offset = attributes[name], attributes['_idx'], attributes['offset']
    if index == array.shape[2]:
        return array
    if index < offset:
        return mx.concatenate([array[..., index:, :], array[..., :index, :]], axis=2)
    return array[..., :index, :]
