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
    """What bringing the state up to one picture cost.

    refreshed: (rows, columns) bool, the cells that were paid for.
    deferred: (rows, columns) bool, cells known to have changed and not yet refreshed.
    changed: (rows, columns) bool, the cells that were found changed and whose state shows it now; all where nothing
        could be compared. What was computed whole may have paid for more.
    oldest_cell_age_s: seconds between this picture and the oldest cached cell.
    budget_ms: what the refresh was allowed to take; 0: no limit.
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

    @property
    def visual_tokens_total(self) -> int:
        """Visual tokens of the picture."""
        return self.refreshed.size

    @property
    def visual_tokens_refreshed(self) -> int:
        """Visual tokens whose state was computed anew."""
        return int(self.refreshed.sum())

    @property
    def visual_tokens_deferred(self) -> int:
        """Visual tokens in staleness debt."""
        return int(self.deferred.sum())

    @property
    def visual_tokens_changed(self) -> int:
        """Visual tokens that were found changed and whose state shows it now."""
        return int(self.changed.sum())

    @property
    def total_ms(self) -> float:
        """All stages together."""
        return self.change_ms + self.vision_ms + self.prefill_ms
