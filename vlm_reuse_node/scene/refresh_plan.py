"""What to refresh for a picture: the cheapest level that is allowed, within a budget, the most urgent cells first.

NumPy only. What does not fit is deferred, and the longer a cell waits, the sooner it is refreshed. A cell that is in
doubt for longer than max_cell_age_s is refreshed whatever the budget says. Without budget_ms no plan needs a clock.
"""

from dataclasses import dataclass

import numpy as np

from vlm_reuse_node.config import Config
from vlm_reuse_node.scene.change import Change
from vlm_reuse_node.scene.refresh import Level

# What a refresh counts for in the fit when the next one is added.
REMEMBERED = 0.95
# One that took longer than expected counts for at most so many times that: once may be chance, and after a few the
# expectation has grown.
MOST_SLOWER = 3


@dataclass(frozen=True, eq=False)
class RefreshPlan:
    """What one frame gets.

    refreshed: (rows, columns) bool, the cells to compute; None: all of them, before the frame's grid is known.
    deferred: (rows, columns) bool, stale cells that did not fit; None: none.
    """

    level: Level
    refreshed: np.ndarray | None = None
    deferred: np.ndarray | None = None

    def over(self, rows: int, columns: int) -> 'RefreshPlan':
        """The same plan for a frame of this grid, with no None in it."""
        if self.refreshed is not None:
            return self
        everything = np.ones((rows, columns), bool)
        return RefreshPlan(self.level, everything, ~everything)


class Cost:
    """Milliseconds of a refresh by its cells: a fixed part and one per cell, fitted to what refreshes took."""

    def __init__(self) -> None:
        """Know nothing."""
        self._sums = np.zeros(5)  # of 1, cells, ms, cells^2, cells * ms; older refreshes count less
        self._most_cells = 0  # seen so far: what more of them take is not known

    @property
    def is_known(self) -> bool:
        """Whether there was a refresh."""
        return self._sums[0] > 0

    def learn(self, cells: int, ms: float) -> None:
        """Take one refresh of so many cells into account."""
        if cells <= self._most_cells and (expected := self.ms(cells)):
            ms = min(ms, MOST_SLOWER * expected)
        self._most_cells = max(self._most_cells, cells)
        self._sums = REMEMBERED * self._sums + (1, cells, ms, cells * cells, cells * ms)

    def ms(self, cells: int) -> float:
        """Expected time of a refresh of so many cells; it never falls with their number, nor below 0."""
        count, x, y, xx, xy = self._sums
        spread = count * xx - x * x
        slope = max(0.0, (count * xy - x * y) / spread) if spread > 1e-6 * count * xx else 0.0
        return max(0.0, (y - slope * x) / count + slope * cells)


class RefreshPlanner:
    """Plans one camera's refreshes, and learns from what they took."""

    def __init__(self) -> None:
        """Know no costs; the first refreshes are made to learn them."""
        self._costs, self._has_patched = {Level.PATCH: Cost(), Level.FRAME: Cost()}, False

    def learn(self, level: Level, cells: int, ms: float) -> None:
        """Note what a refresh of so many cells took, vision and prefill together.

        level: PATCH or FRAME; of one picture alone FULL is the same as FRAME. The first patch is not learnt from: it
        may have had kernels to compile.
        """
        if level == Level.FRAME or self._has_patched:
            self._costs[level].learn(cells, ms)
        self._has_patched |= level == Level.PATCH

    def plan(self, change: Change, config: Config, can_patch: bool, whole_is_due: bool = False) -> RefreshPlan:
        """Choose level and cells.

        can_patch: whether single cells may be refreshed; else it is all or none. whole_is_due: whether all are wanted
        as soon as they fit.
        """
        urgent, overdue = _by_urgency(change, config.max_cell_age_s)
        total, budget_ms = change.stale.size, config.budget_ms or np.inf
        budget_cells = config.budget_tokens or total
        patchable = int(config.max_patch_share * total) if can_patch else 0
        cells = self._most_cells(min(len(urgent), patchable, budget_cells), total, budget_ms)
        # The whole picture at once, where that fits and single cells do not do, or where more is overdue than they may.
        fits = budget_cells >= total and self._frame_ms(total) <= budget_ms
        if len(urgent) and (whole_is_due or cells < len(urgent)) if fits else overdue > patchable:
            return RefreshPlan(Level.FRAME).over(*change.stale.shape)
        cells = max(cells, overdue)
        refreshed = np.zeros(change.stale.shape, bool)
        refreshed.ravel()[urgent[:cells]] = True
        return RefreshPlan(Level.PATCH if cells else Level.REUSE, refreshed, change.stale & ~refreshed)

    def _most_cells(self, most: int, total: int, budget_ms: float) -> int:
        """Most cells whose refresh takes no longer."""
        return next((cells for cells in range(most, 0, -1) if self._patch_ms(cells, total) <= budget_ms), 0)

    def _frame_ms(self, total: int) -> float:
        cost = self._costs[Level.FRAME]
        return cost.ms(total) if cost.is_known else 0.0

    def _patch_ms(self, cells: int, total: int) -> float:
        """Until there was one: the cells' share of the whole picture."""
        cost = self._costs[Level.PATCH]
        return cost.ms(cells) if cost.is_known else self._frame_ms(total) * cells / total


def _by_urgency(change: Change, limit_s: float) -> tuple[np.ndarray, int]:
    """Numbers of the stale cells, the most urgent first, and how many of them are overdue: those come before all."""
    stale = np.flatnonzero(change.stale)
    difference, doubt_s = (each.ravel()[stale].astype(float) for each in (change.difference, change.doubt_s))
    overdue = doubt_s > limit_s
    # Added to both, so that a cell that waits gets more urgent even where it differs little.
    order = np.lexsort((-(difference + 1) * (doubt_s + 1e-3), ~overdue))
    return stale[order], int(overdue.sum())
