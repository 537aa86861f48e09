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

"""The record of one answer: its status, the frame it came from, and its cost."""

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
    """The answer to one question, the frame it came from, and its cost.

    choice_index: index into the question's choices, -1 for none.
    choice_scores: probability of each choice, from logits, in the question's order.
    stamp_ns, frame_id: of the newest frame that the state agrees with.
    cached_stamp_ns: of the frame that the state was computed from; older than stamp_ns when nothing has changed since.
    lag_s: how long cells of the state have been known to differ from the newest frame; 0: they do not.
    image_age_s: age of the newest frame when the question was asked, plus the lag. The age counts from the frame's
        stamp, or from its arrival if that is earlier.
    level: the level of the refresh that this answer waited for: REUSE when it waited for none; None without an answer.
    exact: True when there is an answer and its state equals a cold-dense one on the cached frame.
    tokens_prefilled: prompt and choice tokens that were computed for this answer.
    refresh_ms: image processor and vision tower of the refresh that this answer waited for. prefill_ms: the pass
        through the language model, of what had changed, the question and its choices. decode_ms: decoding a text.
    confidence: probability of the best choice, or of a text's least likely token; 0 without an answer.
    escalated: whether a patched state's answer was below min_confidence, or none; this one was given after a refresh.
    remembered: whether the same question got this answer before, from the same state. Then the model did nothing:
        tokens_prefilled and tokens_generated are 0; token_ids are those of the answer.
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
    lag_s: float = 0.0
    image_age_s: float = 0.0
    model: str = ''
    level: Level | None = None
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
    remembered: bool = False

    @property
    def total_ms(self) -> float:
        """Time from the question to the answer."""
        return self.queue_ms + self.refresh_ms + self.prefill_ms + self.decode_ms
