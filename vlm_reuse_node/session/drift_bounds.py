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

"""Counts of drift, and exact bounds of a share that was counted."""

from dataclasses import dataclass

from scipy.special import betaincinv

CONFIDENCE = 0.95
# Patches must save at least this share of the work: less may be the noise of the clock.
LEAST_GAIN = 0.05
FEWEST = 20
# Nobody asks more questions than this.
MOST_ANSWERS = 10**9


@dataclass(frozen=True)
class DriftCount:
    """Some answers, and how many of them cold-dense answers differently."""

    answers: int = 0
    drifted: int = 0

    @property
    def share(self) -> float:
        """The share that drifted; 0 without answers."""
        return self.drifted / self.answers if self.answers else 0.0

    @property
    def bounds(self) -> tuple[float, float]:
        """The 95 % interval of the share that drifted; see `share_bounds`."""
        return share_bounds(self.drifted, self.answers)

    @property
    def high(self) -> float:
        """The upper end of the interval."""
        return self.bounds[1]

    def needed(self, limit: float) -> float:
        """How many answers show that the share stays below a limit; infinite where it does not.

        With fewer than FEWEST the share that drifted says nothing, and is taken for 0.
        """
        return answers_needed(self.share if self.answers >= FEWEST else 0.0, limit)

    def __add__(self, other: 'DriftCount') -> 'DriftCount':
        """Both together."""
        return DriftCount(self.answers + other.answers, self.drifted + other.drifted)


def share_bounds(count: int, total: int) -> tuple[float, float]:
    """The exact (Clopper-Pearson) two-sided 95 % interval of a share; (0, 1) when nothing was counted.

    It holds for counts that are independent of each other.
    """
    tail = (1 - CONFIDENCE) / 2
    low = betaincinv(count, total - count + 1, tail) if count else 0.0
    high = betaincinv(count + 1, total - count, 1 - tail) if count < total else 1.0
    return float(low), float(high)


def answers_needed(share: float, limit: float) -> float:
    """How many answers are needed until the interval of this share ends below a limit; infinite where it never does."""
    if share >= limit:
        return float('inf')
    low, high = 1, 2
    while share_bounds(round(share * high), high)[1] > limit:
        low, high = high, 2 * high
        if high > MOST_ANSWERS:
            return float('inf')
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if share_bounds(round(share * middle), middle)[1] <= limit else (middle, high)
    return high
