"""One question's turn at the model: its deadline, its cancellation, its stage times, who listens."""

import math
import time
from collections.abc import Callable
from typing import Any

from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.progress import Progress


class Halt(Exception):
    """The turn ends without an answer; the message says why and what to do."""

    def __init__(self, status: Status, message: str):
        super().__init__(message)
        self.status = status


class Turn:
    """Clock and brake of one question. Times are the steady clock's (`time.perf_counter`).

    stages: milliseconds so far, by the names of `Answer`'s fields.
    """

    def __init__(
        self,
        asked_s: float | None = None,
        cancelled: Callable[[], bool] | None = None,
        listener: Callable[[Progress], None] | None = None,
    ):
        """Start the turn of a question that was asked at `asked_s` (now when None); no timeout yet.

        listener: told when a stage begins, and of every token.
        """
        self._lap_s = time.perf_counter()
        self._asked_s = self._lap_s if asked_s is None else asked_s
        self._timeout_s = math.inf
        self._cancelled, self._listener = cancelled or (lambda: False), listener
        self.stages: dict[str, Any] = {'queue_ms': 1e3 * (self._lap_s - self._asked_s)}

    def begin(self, timeout_s: float) -> None:
        """Allow so many seconds from the asking on; raises Halt when they are over already."""
        self._timeout_s = timeout_s
        self.check()

    def check(self) -> None:
        """Raise Halt when the question was cancelled or its time is over; called at every token."""
        if self._cancelled():
            raise Halt(Status.CANCELLED, 'The question was cancelled.')
        if time.perf_counter() - self._asked_s >= self._timeout_s:
            raise Halt(
                Status.TIMEOUT,
                f'No answer within {self._timeout_s:g} s, the time in the queue included; '
                f'allow more (timeout) or fewer tokens (max_tokens).',
            )

    @property
    def is_heard(self) -> bool:
        """Whether somebody listens."""
        return self._listener is not None

    def tell(self, stage: str, text: str = '', tokens_generated: int = 0) -> None:
        """Say how far the answer is."""
        if self._listener:
            self._listener(Progress(stage, text, tokens_generated))

    def lap(self, stage: str) -> None:
        """Book the time since the last lap on a stage."""
        now_s = time.perf_counter()
        self.book(stage, 1e3 * (now_s - self._lap_s))

    def book(self, stage: str, spent_ms: float) -> None:
        """Book part of the running lap on a stage of its own."""
        self.stages[stage] = self.stages.get(stage, 0.0) + spent_ms
        self._lap_s += spent_ms / 1e3
