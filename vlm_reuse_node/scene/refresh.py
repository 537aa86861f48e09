"""The record of one refresh: what bringing the state up to a picture cost.

Raw additive counts and stage times only; ratios are properties.
"""

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np


class Level(StrEnum):
    """A rung of the refresh ladder, cheapest first."""

    REUSE = 'reuse'
    PATCH = 'patch'
    FRAME = 'frame'
    FULL = 'full'


@dataclass(frozen=True, eq=False)
class Refresh:
    """What bringing the state up to one frame cost.

    refreshed: (rows, columns) bool, the cells that were paid for.
    deferred: (rows, columns) bool, cells known to have changed and not yet refreshed.
    changed: (rows, columns) bool, the cells that were found changed and whose state shows it now; all where nothing
        could be compared. What was computed whole may have paid for more.
    oldest_cell_age_s: seconds from the frame that the oldest cached cell was computed from to this one.
    budget_ms: what the refresh was allowed to take; 0: no limit.
    visual_tokens_total, visual_tokens_refreshed, visual_tokens_changed, visual_tokens_deferred: the cells, counted.
    spent_ms: all stages together.
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
