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

"""The worker's counts, and a snapshot of them."""

import threading
from collections import Counter
from dataclasses import dataclass

from vlm_reuse_node.session.answer import Answer
from vlm_reuse_node.session.session_status import SessionStatus


@dataclass(frozen=True)
class WorkerStats:
    """A snapshot of the worker's counts.

    model: the loaded model's name, '' before `start`.
    waiting: number of planners' questions that wait now, by camera; without the one that is being answered.
    answers: number of answers, by status name. remembered: how many of them were remembered.
    last_error: the newest failure; '' after the model has answered or refreshed without failure.
    sessions: what each camera's session holds and has done.
    watches: number of standing questions.
    device_bytes: memory held by MLX: the weights, every state, and buffers for reuse.
    """

    model: str
    waiting: dict[str, int]
    answers: dict[str, int]
    remembered: int
    last_error: str
    sessions: dict[str, SessionStatus]
    watches: int
    device_bytes: int


class Tally:
    """Counts that the model's thread updates and any thread reads."""

    def __init__(self) -> None:
        """Start with all counts at 0."""
        self._lock = threading.Lock()
        self._answers: Counter[str] = Counter()
        self._remembered = 0
        self._sessions: dict[str, SessionStatus] = {}
        self.model = ''
        self.last_error = ''

    def count_answer(self, answer: Answer) -> None:
        """Count one answer."""
        with self._lock:
            self._answers[str(answer.status)] += 1
            self._remembered += answer.remembered

    def note_sessions(self, sessions: dict[str, SessionStatus]) -> None:
        """Record what each camera's session holds and has done."""
        with self._lock:
            self._sessions = sessions

    def stats(self, waiting: dict[str, int], watches: int, device_bytes: int) -> WorkerStats:
        """The current counts."""
        with self._lock:
            return WorkerStats(
                self.model,
                waiting,
                dict(self._answers),
                self._remembered,
                self.last_error,
                dict(self._sessions),
                watches,
                device_bytes,
            )
