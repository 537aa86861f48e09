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

"""Plans a refresh: the cheapest level that is allowed, within a budget, the most urgent cells first.

Cells that do not fit into the budget are deferred. A cell gets more urgent while it is deferred. The budget does not
apply to a cell that has been in doubt for longer than max_cell_age_s. Without budget_ms a plan does not depend on
measured times. NumPy only.
"""

from dataclasses import dataclass

import numpy as np

from vlm_reuse_node.config import Config
from vlm_reuse_node.scene.change import Change
from vlm_reuse_node.scene.refresh import Level

# Every new refresh multiplies the weight of the older ones in the fit by this factor.
REMEMBERED = 0.95
# A refresh is learnt with at most this many times its expected time. One outlier then hardly matters, and after several
# slow refreshes the expectation has grown.
MOST_SLOWER = 3


@dataclass(frozen=True, eq=False)
class RefreshPlan:
    """The level and the cells of one refresh.

    refreshed: (rows, columns) bool, the cells to compute; None: all cells, while the frame's grid is not known.
    deferred: (rows, columns) bool, the stale cells that did not fit into the budget; None: no cells.
    """

    level: Level
    refreshed: np.ndarray | None = None
    deferred: np.ndarray | None = None

    def over(self, rows: int, columns: int) -> 'RefreshPlan':
        """The same plan with a mask in place of every None, for a frame with this grid."""
        if self.refreshed is not None:
            return self
        everything = np.ones((rows, columns), bool)
        return RefreshPlan(self.level, everything, ~everything)


class Cost:
    """Expected time of a refresh: a fixed part, plus a part for each cell. Both are fitted to measured refreshes."""

    def __init__(self) -> None:
        """Start without measurements."""
        self._sums = np.zeros(5)  # weighted sums of 1, cells, ms, cells^2, cells * ms
        self._most_cells = 0  # the largest refresh that was measured; the fit says little about larger ones

    @property
    def is_known(self) -> bool:
        """Whether a refresh was measured."""
        return self._sums[0] > 0

    def learn(self, cells: int, ms: float) -> None:
        """Add the measured time of a refresh of this many cells."""
        if cells <= self._most_cells and (expected := self.ms(cells)):
            ms = min(ms, MOST_SLOWER * expected)
        self._most_cells = max(self._most_cells, cells)
        self._sums = REMEMBERED * self._sums + (1, cells, ms, cells * cells, cells * ms)

    def ms(self, cells: int) -> float:
        """Expected time of a refresh of this many cells: never negative, and never less for more cells."""
        count, x, y, xx, xy = self._sums
        variance = count * xx - x * x
        slope = max(0.0, (count * xy - x * y) / variance) if variance > 1e-6 * count * xx else 0.0
        return max(0.0, (y - slope * x) / count + slope * cells)


class RefreshPlanner:
    """Plans one camera's refreshes, and learns how long they take."""

    def __init__(self) -> None:
        """Start without known costs. They are learnt from the first refreshes."""
        self._costs, self._has_patched = {Level.PATCH: Cost(), Level.FRAME: Cost()}, False

    def learn(self, level: Level, cells: int, ms: float) -> None:
        """Learn the time of a refresh of this many cells, vision and prefill together.

        level: PATCH or FRAME; a FULL refresh without history counts as FRAME. The first patch is not counted, because
        it may include the compilation of kernels.
        """
        if level == Level.FRAME or self._has_patched:
            self._costs[level].learn(cells, ms)
        self._has_patched |= level == Level.PATCH

    def plan(self, change: Change, config: Config, can_patch: bool, whole_is_due: bool = False) -> RefreshPlan:
        """Choose level and cells.

        can_patch: whether single cells may be refreshed; else it is all cells or none. whole_is_due: whether to refresh
        all cells as soon as that fits into the budget.
        """
        urgent, overdue = _by_urgency(change, config.max_cell_age_s)
        total, budget_ms = change.stale.size, config.budget_ms or np.inf
        budget_cells = config.budget_tokens or total
        patchable = int(config.max_patch_share * total) if can_patch else 0
        cells = self._most_cells(min(len(urgent), patchable, budget_cells), total, budget_ms)
        # Refresh the whole frame when that fits and patching cannot cover all stale cells. Refresh it although it does
        # not fit when more cells are overdue than may be patched.
        fits = budget_cells >= total and self._frame_ms(total) <= budget_ms
        if len(urgent) and (whole_is_due or cells < len(urgent)) if fits else overdue > patchable:
            return RefreshPlan(Level.FRAME).over(*change.stale.shape)
        cells = max(cells, overdue)
        refreshed = np.zeros(change.stale.shape, bool)
        refreshed.ravel()[urgent[:cells]] = True
        return RefreshPlan(Level.PATCH if cells else Level.REUSE, refreshed, change.stale & ~refreshed)

    def _most_cells(self, most: int, total: int, budget_ms: float) -> int:
        """The largest number of cells, up to `most`, that can be refreshed within budget_ms."""
        return next((cells for cells in range(most, 0, -1) if self._patch_ms(cells, total) <= budget_ms), 0)

    def _frame_ms(self, total: int) -> float:
        cost = self._costs[Level.FRAME]
        return cost.ms(total) if cost.is_known else 0.0

    def _patch_ms(self, cells: int, total: int) -> float:
        """Expected time of a patch. Until one was measured: the cells' share of the time of the whole frame."""
        cost = self._costs[Level.PATCH]
        return cost.ms(cells) if cost.is_known else self._frame_ms(total) * cells / total


def _by_urgency(change: Change, limit_s: float) -> tuple[np.ndarray, int]:
    """Indices of the stale cells, the most urgent first, and the number of overdue cells. Overdue cells come first."""
    stale = np.flatnonzero(change.stale)
    difference, doubt_s = (values.ravel()[stale].astype(float) for values in (change.difference, change.doubt_s))
    overdue = doubt_s > limit_s
    # The constants keep both factors above 0: a cell with a small difference gets more urgent with time too.
    order = np.lexsort((-(difference + 1) * (doubt_s + 1e-3), ~overdue))
    return stale[order], int(overdue.sum())
