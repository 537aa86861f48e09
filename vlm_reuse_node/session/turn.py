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

"""One question's turn at the model: deadline, cancellation, stage times and listener."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.progress import Progress


class Halt(Exception):
    """Ends a turn without an answer. The message says why and what to do."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status


class Turn:
    """Measures the stages of one question and stops it in time. Times come from the steady clock (`time.perf_counter`).

    stages: milliseconds of each stage so far, by the names of `Answer`'s fields.
    halt: status and message when the question has ended; None as long as it goes on.
    """

    def __init__(
        self,
        asked_s: float | None = None,
        cancelled: Callable[[], bool] | None = None,
        listener: Callable[[Progress], None] | None = None,
    ) -> None:
        """Start the turn of a question that was asked at `asked_s` (None: now). There is no timeout before `begin`.

        listener: called at the start of every stage, and after every token.
        """
        self._lap_s = time.perf_counter()
        self._asked_s = self._lap_s if asked_s is None else asked_s
        self._timeout_s = math.inf
        self.halt: tuple[Status, str] | None = None
        self._cancelled, self._listener = cancelled or (lambda: False), listener
        self.stages: dict[str, Any] = {'queue_ms': 1e3 * (self._lap_s - self._asked_s)}

    def begin(self, timeout_s: float) -> None:
        """Set the timeout, seconds since the question was asked. Raises Halt when it has passed already."""
        self._timeout_s = timeout_s
        self.check()

    def check(self) -> None:
        """Raise Halt when the question was cancelled or timed out. Called at every token."""
        if self.halt is None and self._cancelled():
            self.halt = Status.CANCELLED, 'The question was cancelled.'
        elif self.halt is None and time.perf_counter() - self._asked_s >= self._timeout_s:
            self.halt = (
                Status.TIMEOUT,
                f'No answer within {self._timeout_s:g} s, the time in the queue included; '
                f'allow more time (timeout) or fewer tokens (max_tokens).',
            )
        if self.halt:
            raise Halt(*self.halt)

    @property
    def has_listener(self) -> bool:
        """Whether the turn has a listener."""
        return self._listener is not None

    def report(self, stage: str, text: str = '', tokens_generated: int = 0) -> None:
        """Report progress to the listener."""
        if self._listener:
            self._listener(Progress(stage, text, tokens_generated))

    def lap(self, stage: str) -> None:
        """Add the time since the last lap to a stage."""
        now_s = time.perf_counter()
        self.book(stage, 1e3 * (now_s - self._lap_s))

    def book(self, stage: str, spent_ms: float) -> None:
        """Add part of the running lap to another stage."""
        self.stages[stage] = self.stages.get(stage, 0.0) + spent_ms
        self._lap_s += spent_ms / 1e3


class SharedTurn:
    """The turns of several questions that share a step of the model. Each keeps its own deadline and cancellation."""

    def __init__(self, turns: Sequence[Turn]) -> None:
        """Share a step among these turns, at least one."""
        self._turns = turns

    def check(self) -> None:
        """Check each turn. Raises Halt when none is left."""
        for turn in self._turns:
            with suppress(Halt):
                turn.check()
        if all(turn.halt for turn in self._turns):
            raise Halt(*self._turns[0].halt)

    def report(self, stage: str) -> None:
        """Report progress to each listener."""
        for turn in self._turns:
            turn.report(stage)

    def lap(self, stage: str) -> None:
        """Add the time since the last lap to a stage of each."""
        for turn in self._turns:
            turn.lap(stage)
