"""The refresh budget's records: what every picture and every answer cost.

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


class Status(StrEnum):
    """How a question ended. The numbers in `msg/Answer` follow this order."""

    OK = 'OK'
    NO_IMAGE = 'NO_IMAGE'
    STALE = 'STALE'
    BUSY = 'BUSY'
    TIMEOUT = 'TIMEOUT'
    CANCELLED = 'CANCELLED'
    INVALID_REQUEST = 'INVALID_REQUEST'
    MODEL_ERROR = 'MODEL_ERROR'
    INACTIVE = 'INACTIVE'


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


@dataclass(frozen=True)
class Question:
    """What a planner asks about a camera's newest picture.

    choices: when given, the answer is one of them, scored by logits.
    json_schema: JSON schema that the text will follow; '': none.
    max_tokens: 0 takes the configured default.
    max_age_s: the oldest picture that may be answered from; 0 takes the configured default.
    timeout_s: from asking to the answer; 0 takes the configured default.
    """

    text: str
    choices: tuple[str, ...] = ()
    json_schema: str = ''
    max_tokens: int = 0
    max_age_s: float = 0.0
    timeout_s: float = 0.0
    force_refresh: bool = False


@dataclass(frozen=True)
class Progress:
    """How far an answer is.

    stage: 'queue', 'refresh', 'prefill' or 'decode'; an answer that is given again after an escalation goes back.
    text: the answer so far.
    """

    stage: str
    text: str = ''
    tokens_generated: int = 0


@dataclass(frozen=True)
class Answer:
    """The answer with what it was given from and what it cost.

    choice_index: index into the question's choices, -1 for none.
    choice_scores: probability of each choice, from logits, in the question's order.
    stamp_ns, frame_id: of the newest picture that the state stands for.
    cached_stamp_ns: of the picture the state was computed from; older than stamp_ns while nothing has changed since.
    image_age_s: from the picture of stamp_ns to the asking, or from its arrival when its stamp is later; with cells in
        debt, from the last picture that showed them as they are cached.
    level: the refresh that brought the state up to that picture; '' without an answer.
    exact: True when there is an answer, and the state equals a cold-dense one on the cached picture.
    tokens_prefilled: prompt and choice tokens that this answer paid for.
    refresh_ms: a refresh this answer had to wait for; for a cold answer, its image processor and vision tower.
    confidence: probability of the best choice, or of a text's least likely token; 0 without an answer.
    escalated: whether a patched state was not sure enough of its answer, and this one was given after a refresh.
    """

    status: Status
    message: str = ''
    text: str = ''
    choice_index: int = -1
    choice_scores: tuple[float, ...] = ()
    camera: str = ''
    stamp_ns: int = 0
    frame_id: str = ''
    cached_stamp_ns: int = 0
    image_age_s: float = 0.0
    model: str = ''
    level: Level | str = ''
    exact: bool = False
    tokens_reused: int = 0
    tokens_prefilled: int = 0
    tokens_generated: int = 0
    token_ids: tuple[int, ...] = field(default=(), repr=False)
    queue_ms: float = 0.0
    refresh_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    confidence: float = 0.0
    escalated: bool = False

    @property
    def total_ms(self) -> float:
        """From asking to the answer."""
        return self.queue_ms + self.refresh_ms + self.prefill_ms + self.decode_ms
