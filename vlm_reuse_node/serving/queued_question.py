"""The record of a question that waits for the model."""

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
    """A question that waits. Its future stays pending until the answer, so that it can be cancelled at any time.

    now_ns: the node clock at the asking. cold: answer from nothing. cancel: set to cancel. listener: told of progress,
    on the model's thread. asked_s: the steady clock. is_standing: no planner waits for it.
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
        """Whether nobody wants the answer any more."""
        return self.future.cancelled() or (self.cancel is not None and self.cancel.is_set())

    def is_late(self, default_timeout_s: float) -> bool:
        """Whether its time has passed; an invalid timeout is left to the session."""
        timeout_s = self.question.timeout_s or default_timeout_s
        return isinstance(timeout_s, Real) and 0 < timeout_s <= time.perf_counter() - self.asked_s
