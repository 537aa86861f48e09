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

"""When the next question is likely: from the times of the last questions. Standard library only."""

import math
from collections import deque
from statistics import mean, pstdev

# Questions that the rate and the rhythm are taken from.
REMEMBERED = 8
# A rhythm is regular when its intervals spread by at most this share of their mean.
REGULAR = 0.2
# A question is likely when its probability is at least this.
LIKELY = 0.5


class Rhythm:
    """The times of one camera's last questions, seconds on one clock."""

    def __init__(self) -> None:
        """Start without a question."""
        self._asked_s: deque[float] = deque(maxlen=REMEMBERED + 1)

    def note(self, asked_s: float) -> None:
        """Note a question."""
        self._asked_s.append(asked_s)

    @property
    def last_s(self) -> float:
        """The time of the last question; minus infinity before the first."""
        return self._asked_s[-1] if self._asked_s else -math.inf

    def is_question_likely(self, now_s: float, within_s: float) -> bool:
        """Whether the next question is likely within a time from now.

        By the regular rhythm of the last questions, or else by their rate. Silence lowers the rate.
        """
        times = list(self._asked_s)
        if len(times) < 2:
            return False
        intervals = [later - earlier for earlier, later in zip(times, times[1:])]
        period_s = mean(intervals)
        if len(intervals) >= 3 and pstdev(intervals) <= REGULAR * period_s:
            due_s = times[-1] + period_s
            return now_s <= due_s + REGULAR * period_s and due_s <= now_s + within_s
        silence_s = max(0.0, now_s - times[-1])
        rate = len(intervals) / (times[-1] - times[0] + silence_s) if times[-1] > times[0] else 0.0
        return 1 - math.exp(-rate * within_s) >= LIKELY
