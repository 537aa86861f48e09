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

"""The record of a waiting question."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from numbers import Real
from threading import Event

from vlm_reuse_node.session.answer import Answer
from vlm_reuse_node.session.progress import Progress
from vlm_reuse_node.session.question import Question


@dataclass(frozen=True, eq=False)
class QueuedQuestion:
    """A question that waits for the model. Its future stays pending until the answer, so it can always be cancelled.

    now_ns: time of the question on the node's clock.
    cold: answer cold-dense.
    cancel: set this event to cancel the question.
    listener: called with progress on the model's thread.
    asked_s: time of the question on the steady clock.
    is_standing: whether it comes from a standing question, so that no planner waits for it.
    """

    camera: str
    question: Question
    now_ns: int
    cold: bool = False
    cancel: Event | None = None
    listener: Callable[[Progress], None] | None = None
    future: Future[Answer] = field(default_factory=Future)
    asked_s: float = field(default_factory=time.perf_counter)
    is_standing: bool = False

    @property
    def is_cancelled(self) -> bool:
        """Whether the question was cancelled, by its future or its event."""
        return self.future.cancelled() or (self.cancel is not None and self.cancel.is_set())

    def is_late(self, default_timeout_s: float) -> bool:
        """Whether the question has timed out. The session refuses an invalid timeout."""
        timeout_s = self.question.timeout_s or default_timeout_s
        return isinstance(timeout_s, Real) and 0 < timeout_s <= time.perf_counter() - self.asked_s
