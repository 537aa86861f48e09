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

"""The record of one refresh: what it cost to bring the state up to a frame.

It holds additive counts and stage times.
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


@dataclass(frozen=True, eq=False)
class Refresh:
    """What it cost to bring the state up to one frame.

    refreshed: (rows, columns) bool, the cells that were computed.
    deferred: (rows, columns) bool, the cells that changed and wait for a later refresh.
    changed: (rows, columns) bool, the changed cells among the refreshed ones; all cells when there was no frame to
        compare with. Other cells are refreshed too when the whole frame is.
    oldest_cell_age_s: age of the frame that the oldest cached cell was computed from, relative to this one, seconds.
    budget_ms: the time limit of the refresh; 0: none.
    visual_tokens_total, visual_tokens_refreshed, visual_tokens_changed, visual_tokens_deferred: counts of cells.
    spent_ms: the sum of all stages.
    """

    camera: str
    stamp_ns: int
    frame_id: str
    level: Level
    reason: str
    refreshed: np.ndarray
    deferred: np.ndarray
    oldest_cell_age_s: float = 0.0
    budget_ms: float = 0.0
    change_ms: float = 0.0
    vision_ms: float = 0.0
    prefill_ms: float = 0.0
    changed: np.ndarray = field(kw_only=True)
    visual_tokens_total: int = field(init=False)
    visual_tokens_refreshed: int = field(init=False)
    visual_tokens_changed: int = field(init=False)
    visual_tokens_deferred: int = field(init=False)
    spent_ms: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, 'visual_tokens_total', self.refreshed.size)
        for name in ('refreshed', 'changed', 'deferred'):
            object.__setattr__(self, f'visual_tokens_{name}', int(getattr(self, name).sum()))
        object.__setattr__(self, 'spent_ms', self.change_ms + self.vision_ms + self.prefill_ms)
