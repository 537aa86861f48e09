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

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vlm_reuse_node.config import Config
from vlm_reuse_node.scene.change import Change, SceneChange
from vlm_reuse_node.scene.refresh import Level


@dataclass(frozen=True, eq=False)
class RefreshPlan:
    """The level and the cells of one refresh.

    refreshed: (rows, columns) bool, the cells to compute.
    deferred: (rows, columns) bool, the stale cells that did not fit into the budget.
    """

    level: Level
    refreshed: np.ndarray
    deferred: np.ndarray

    @classmethod
    def of_all(cls, level: Level, like: np.ndarray) -> 'RefreshPlan':
        """Compute all cells. like: an array with a value for each, (rows, columns)."""
        return cls(level, np.ones_like(like, bool), np.zeros_like(like, bool))


def plan_refresh(
    change: Change,
    config: Config,
    *,
    can_patch: bool,
    whole_is_due: bool = False,
    frame_ms: float = 0.0,
    patch_ms: Callable[[np.ndarray], float] = lambda cells: 0.0,
) -> RefreshPlan:
    """Choose level and cells.

    can_patch: whether single cells may be refreshed; else it is all cells or none. whole_is_due: whether to refresh all
    cells as soon as that fits into the budget. frame_ms: expected time of a refresh of all cells; patch_ms: of some
    cells, by their numbers.
    """
    urgent, overdue = _by_urgency(change, config.max_cell_age_s)
    total, budget_ms = change.stale.size, config.budget_ms or np.inf
    patchable = int(config.max_patch_share * total) if can_patch else 0
    most = min(len(urgent), patchable)
    cells = next((cells for cells in range(most, 0, -1) if patch_ms(urgent[:cells]) <= budget_ms), 0)
    # Refresh the whole frame when that fits and patching cannot cover all stale cells. Refresh it although it does
    # not fit when more cells are overdue than may be patched.
    if len(urgent) and (whole_is_due or cells < len(urgent)) if frame_ms <= budget_ms else overdue > patchable:
        return RefreshPlan.of_all(Level.FRAME, change.stale)
    cells = max(cells, overdue)
    refreshed = np.zeros(change.stale.shape, bool)
    refreshed.ravel()[urgent[:cells]] = True
    return RefreshPlan(Level.PATCH if cells else Level.REUSE, refreshed, change.stale & ~refreshed)


def reason_of(change: Change, is_exact: bool) -> str:
    """Say why a refresh is done, for people. is_exact: whether the state was exact before."""
    if change.scene != SceneChange.SAME:
        return 'the scene was cut' if change.scene == SceneChange.CUT else 'the camera moved'
    if not change.stale.any():
        return 'forced' if is_exact else 'a patched frame is computed whole'
    what = 'changed' if change.changed.any() else 'in doubt for too long'
    return f'{np.count_nonzero(change.stale)} of {change.stale.size} cells {what}'


def _by_urgency(change: Change, limit_s: float) -> tuple[np.ndarray, int]:
    """Indices of the stale cells, the most urgent first, and the number of overdue cells. Overdue cells come first."""
    stale = np.flatnonzero(change.stale)
    difference, doubt_s = (values.ravel()[stale].astype(float) for values in (change.difference, change.doubt_s))
    overdue = doubt_s > limit_s
    # The constants keep both factors above 0: a cell with a small difference gets more urgent with time too.
    order = np.lexsort((-(difference + 1) * (doubt_s + 1e-3), ~overdue))
    return stale[order], int(overdue.sum())
