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

"""Which tokens of one forward call see which. NumPy only.

A call may write tokens over rows that are in the cache already (the changed cells of a picture), and it may add tokens
behind the cache. The added ones form a tree: each follows another one or the cache's end, and sees only the tokens that
it follows. So several questions, each with several choices, go through the model in one call and do not see each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

NO_ROWS = np.zeros(0, np.int64)


class Block(NamedTuple):
    """Tokens that follow each other.

    ids: at least one token. parent: number of the block that they follow, lower than their own; -1: the cache's end.
    is_answer: whether the logits of all tokens are wanted; else only those of the last one.
    """

    ids: list[int]
    parent: int = -1
    is_answer: bool = False


class Run(NamedTuple):
    """A block among the added tokens of a call: those from number `start` to before number `end`.

    behind: end of the block that it follows; 0: it follows the cache's end.
    """

    start: int
    end: int
    behind: int


@dataclass(frozen=True, eq=False)
class TokenTree:
    """The tokens of one call: first those that are written over rows of the cache, then those that are added behind it.

    held: tokens in the cache before the call.
    rows: which rows of the cache are written over, (rewritten,) ascending. A row may come twice, with equal tokens.
    parents: (added,) which added token each one follows, a lower number; -1: the cache's end.
    two_way: rows of one picture's cells, if its cells see each other in both directions. Added tokens have rows, too:
        the first has row `held`.
    ends: (blocks,) number of added tokens up to the end of each block.
    """

    held: int
    rows: np.ndarray
    parents: np.ndarray
    two_way: np.ndarray = field(default_factory=lambda: NO_ROWS)
    ends: np.ndarray = field(default_factory=lambda: NO_ROWS)

    @classmethod
    def of(
        cls,
        held: int,
        blocks: Sequence[Block],
        rows: np.ndarray = NO_ROWS,
        two_way: np.ndarray = NO_ROWS,
    ) -> 'TokenTree':
        """Arrange blocks behind `held` tokens, in their order."""
        parents: list[int] = []
        last: list[int] = []  # of each block: its last token
        for ids, parent, _ in blocks:
            first = len(parents)
            parents += [last[parent] if parent >= 0 else -1, *range(first, first + len(ids) - 1)]
            last.append(len(parents) - 1)
        return cls(held, rows, np.array(parents, np.int64), two_way, np.array(last, np.int64) + 1)

    @cached_property
    def places(self) -> np.ndarray:
        """How many tokens precede each token of the call in its own sequence, (tokens,) int32.

        A model that counts one position for every token has its positions here.
        """
        depths: list[int] = []
        for parent in self.parents.tolist():
            depths.append(depths[parent] + 1 if parent >= 0 else self.held)
        return np.concatenate([self.rows, depths]).astype(np.int32)

    @cached_property
    def runs(self) -> list[Run]:
        """The blocks."""
        ends = self.ends.tolist()
        return [Run(start, end, int(self.parents[start]) + 1) for start, end in zip([0, *ends], ends)]

    @cached_property
    def levels(self) -> list[list[Run]]:
        """The blocks by the number of those that they follow: none of a level looks at another one of it."""
        depths = {0: 0}
        levels: list[list[Run]] = []
        for run in self.runs:
            depths[run.end] = depths[run.behind] + 1
            if depths[run.end] > len(levels):
                levels.append([])
            levels[depths[run.end] - 1].append(run)
        return levels

    @cached_property
    def _among(self) -> np.ndarray:
        """Which added tokens see which: themselves and those that they follow. (added, added) bool."""
        among = np.eye(len(self.parents), dtype=bool)
        for token, parent in enumerate(self.parents.tolist()):
            if parent >= 0:
                among[token] |= among[parent]
        return among

    def mask(self, first: int = 0, window: int | None = None) -> np.ndarray:
        """Return which tokens of the call see which rows: (tokens, held - first + added) bool.

        first: the first row that a layer still holds. window: a token sees itself and window - 1 tokens before it.
        """
        held = np.arange(first, self.held)
        rewritten, added = len(self.rows), len(self.parents)
        sees = np.zeros((rewritten + added, len(held) + added), bool)
        sees[:rewritten, : len(held)] = held <= self.rows[:, None]
        sees[rewritten:, : len(held)] = True
        sees[rewritten:, len(held) :] = self._among
        if window is not None:
            key_places = np.concatenate([held, self.places[rewritten:]])
            sees &= self.places[:, None] - key_places < window
        if len(self.two_way):
            rows = np.arange(self.held, self.held + added)
            tokens = np.isin(np.concatenate([self.rows, rows]), self.two_way)
            sees |= tokens[:, None] & np.isin(np.concatenate([held, rows]), self.two_way)
        return sees
