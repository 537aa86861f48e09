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

"""The live frame's slot: its tokens in the prompt, and which of them wait when some of its cells are replaced.

Where every layer keeps keys and values, the changed cells are written over their old rows. A recurrent layer has one
state for all tokens so far. So there the cache goes back to a point before the first changed cell, and all tokens from
there on are computed. These points are the slot's beginning and its checkpoints: snapshots of the cache at some rows of
the picture. A checkpoint holds the state of every recurrent layer, and of the other layers only the length.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from vlm_reuse_node.model.families.base import Family, Grid
from vlm_reuse_node.model.families.sparse_vision import padded
from vlm_reuse_node.model.kv_cache import Snapshot
from vlm_reuse_node.model.one_pass import WaitingTokens
from vlm_reuse_node.model.token_tree import NO_ROWS

# With the slot's beginning they cut the picture into eighths: half of one, on average, is computed in vain.
MOST_CHECKPOINTS = 7


class Restart(NamedTuple):
    """Where a slot is computed again from. cell: the first cell behind it. tokens: of the slot behind it."""

    cell: int
    tokens: int


@dataclass(frozen=True, eq=False)
class LiveSlot:
    """The tokens of the live frame.

    begin: the snapshot before the slot. ids, positions: of the prompt up to the slot's end; positions (axes, tokens).
    rows: of all cells of its picture, (cells,) ascending. checkpoints: that were taken, ascending.
    """

    begin: Snapshot
    ids: list[int] = field(default_factory=list)
    positions: np.ndarray = field(default_factory=lambda: NO_ROWS)
    rows: np.ndarray = field(default_factory=lambda: NO_ROWS)
    checkpoints: tuple[Snapshot, ...] = ()

    def point_before(self, cell: int) -> Snapshot:
        """The last point from which this cell can be computed again."""
        return [point for point in (self.begin, *self.checkpoints) if point.tokens <= self.rows[cell]][-1]

    def restart(self, cell: int) -> Restart:
        """Where the slot is computed again from if this is the first cell to be replaced."""
        start = self.point_before(cell).tokens
        return Restart(int(np.searchsorted(self.rows, start)), len(self.ids) - start)

    def up_to(self, tokens: int) -> 'LiveSlot':
        """The same without the checkpoints behind so many tokens of the prompt."""
        return replace(self, checkpoints=tuple(point for point in self.checkpoints if point.tokens <= tokens))

    def with_checkpoints(self, taken: Sequence[Snapshot], most: int) -> 'LiveSlot':
        """The same with more checkpoints behind those that it has, and then with at most so many, evenly spread."""
        points = (*self.checkpoints, *taken)
        if len(points) > most:
            points = points[:: -(-len(points) // most)] if most else ()
        return replace(self, checkpoints=points)

    def tokens_from(self, start: int, features: mx.array, grid: Grid, most: int) -> WaitingTokens:
        """The tokens of the slot behind so many of the prompt, with at most so many checkpoints in the whole slot.

        features: of all cells, mx (cells, width).
        """
        parts = min(most + 1, grid.rows)
        first_cells = [part * grid.rows // parts * grid.columns for part in range(1, parts)]
        known = int(np.searchsorted(self.rows, start))  # cells before
        return WaitingTokens(
            self.ids[start:],
            features[known:] if known else features,
            self.positions[:, start:],
            NO_ROWS,
            self.rows,
            tuple(int(row) - start for row in self.rows[first_cells] if row > start),
        )

    def cells_and_end(self, cells: np.ndarray, features: mx.array, family: Family) -> tuple[WaitingTokens, int]:
        """Some cells, and the tokens behind all cells, to be written over; and how many tokens these are.

        Some tokens may come twice, see `sparse_vision.padded`.
        """
        rows = np.concatenate([self.rows[cells], np.arange(self.rows[-1] + 1, len(self.ids))])
        rows, count = padded(rows, len(self.ids)), len(rows)
        ids = [self.ids[row] for row in rows]
        given = features[mx.array(np.searchsorted(self.rows, rows[family.cells(ids)]))]
        return WaitingTokens(ids, given, self.positions[:, rows], rows, self.rows), count
