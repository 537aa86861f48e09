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

"""How likely a question is soon: from the times of the last questions. Standard library only."""

import math
from collections import deque
from statistics import NormalDist, mean, pstdev

# Intervals between questions that the rate and the rhythm are taken from.
REMEMBERED = 8
# A rhythm has at least this many questions, and its intervals' standard deviation is at most this share of their mean.
FEWEST, REGULAR = 4, 0.25
# A regular question is expected within this many standard deviations of its time.
SPREAD = 3


class Rhythm:
    """The times of one camera's last questions, seconds on one clock."""

    def __init__(self) -> None:
        """Start without a question."""
        self._asked_s: deque[float] = deque(maxlen=REMEMBERED)

    def note(self, asked_s: float) -> None:
        """Note a question."""
        self._asked_s.append(asked_s)

    @property
    def last_s(self) -> float:
        """The time of the last question; minus infinity before the first."""
        return self._asked_s[-1] if self._asked_s else -math.inf

    def due(self, now_s: float) -> tuple[float, float] | None:
        """The earliest and the expected time of the next question in a regular rhythm; None without one.

        A rhythm ends when its question has not come for too long.
        """
        times = list(self._asked_s)
        if len(times) < FEWEST:
            return None
        intervals = [later - earlier for earlier, later in zip(times, times[1:])]
        period_s, spread_s = mean(intervals), pstdev(intervals)
        due_s = times[-1] + period_s
        if spread_s > REGULAR * period_s or now_s > due_s + SPREAD * spread_s + REGULAR * period_s:
            return None
        return due_s - SPREAD * spread_s, due_s

    def probability(self, now_s: float, within_s: float) -> float:
        """How likely a question is within a time from now: by the regular rhythm, or else by the rate.

        Silence lowers the rate.
        """
        if due := self.due(now_s):
            earliest_s, due_s = due
            if within_s >= due_s - self.last_s:
                return 1.0
            time = NormalDist(due_s, max((due_s - earliest_s) / SPREAD, 1e-3))
            passed = time.cdf(now_s)
            return (time.cdf(now_s + within_s) - passed) / (1 - passed) if passed < 1 else 1.0
        count = len(self._asked_s)
        if count < 2:
            return 0.0
        seconds = max(now_s - self._asked_s[0], 1e-3)
        return 1 - math.exp(-within_s * (count - 1) / seconds)
