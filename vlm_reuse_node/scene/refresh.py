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

"""The record of one look at a picture, or of one refresh: what it found, and what it cost.

It holds additive counts and stage times, and the totals of the camera so far.
"""

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np


class Level(StrEnum):
    """The levels of the refresh ladder, the cheapest first."""

    REUSE = 'reuse'
    PATCH = 'patch'
    FRAME = 'frame'
    FULL = 'full'


@dataclass(frozen=True)
class Totals:
    """What one camera's questions have cost so far. See `Account`.

    work_ms: the model's time, upkeep included. cold_ms: what cold-dense would have needed for the same questions.
    credit_ms: what upkeep may spend now.
    """

    work_ms: float = 0.0
    cold_ms: float = 0.0
    credit_ms: float = 0.0

    @property
    def ratio(self) -> float:
        """Work divided by that of cold-dense; 0 without a question."""
        return self.work_ms / self.cold_ms if self.cold_ms else 0.0


@dataclass(frozen=True, eq=False)
class Refresh:
    """One look at a frame (level REUSE: nothing was computed), or one refresh that brought the state up to a frame.

    refreshed: (rows, columns) bool, the cells that were computed. A recurrent language model also computes cells that
        have not changed: all those behind a point before the first one that has.
    encoded: those of them that the vision tower computed; None: all.
    stale: (rows, columns) bool, the cells of the state that differ from the newest frame and wait for a refresh.
    changed: (rows, columns) bool, the changed cells among the refreshed ones; of a look, among the stale ones. All
        cells when there was no frame to compare with. Other cells are refreshed too when the whole frame is.
    oldest_cell_age_s: age of the frame that the oldest cached cell was computed from, relative to this one, seconds.
    lag_s: how long the stale cells have been known to differ from the newest frame, seconds; 0 without one.
    budget_ms: the time limit of the refresh; 0: none.
    totals: of the camera, after this.
    visual_tokens_total, visual_tokens_refreshed, visual_tokens_encoded, visual_tokens_changed, visual_tokens_stale:
        counts of cells.
    spent_ms: the sum of all stages.
    """

    camera: str
    stamp_ns: int
    frame_id: str
    level: Level
    reason: str
    refreshed: np.ndarray
    stale: np.ndarray
    oldest_cell_age_s: float = 0.0
    lag_s: float = 0.0
    budget_ms: float = 0.0
    change_ms: float = 0.0
    vision_ms: float = 0.0
    prefill_ms: float = 0.0
    totals: Totals = Totals()
    changed: np.ndarray = field(kw_only=True)
    encoded: np.ndarray | None = field(default=None, kw_only=True)
    visual_tokens_total: int = field(init=False)
    visual_tokens_refreshed: int = field(init=False)
    visual_tokens_encoded: int = field(init=False)
    visual_tokens_changed: int = field(init=False)
    visual_tokens_stale: int = field(init=False)
    spent_ms: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, 'visual_tokens_total', self.refreshed.size)
        for name in ('refreshed', 'changed', 'stale'):
            object.__setattr__(self, f'visual_tokens_{name}', int(getattr(self, name).sum()))
        encoded = self.refreshed if self.encoded is None else self.encoded
        object.__setattr__(self, 'visual_tokens_encoded', int(encoded.sum()))
        object.__setattr__(self, 'spent_ms', self.change_ms + self.vision_ms + self.prefill_ms)
