"""The record of one answer: how it ended, what it was given from and what it cost."""

from dataclasses import dataclass, field
from enum import StrEnum

from vlm_reuse_node.scene.refresh import Level


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


@dataclass(frozen=True)
class Answer:
    """The answer with what it was given from and what it cost.

    choice_index: index into the question's choices, -1 for none.
    choice_scores: probability of each choice, from logits, in the question's order.
    stamp_ns, frame_id: of the newest picture that the state stands for.
    cached_stamp_ns: of the picture the state was computed from; older than stamp_ns while nothing has changed since.
    image_age_s: from the picture of stamp_ns to the asking, or from its arrival when its stamp is later; with
        deferred cells, from the last picture that showed them as they are cached.
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
