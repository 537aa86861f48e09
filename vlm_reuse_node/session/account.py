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

"""One camera's account: the work of cold-dense for the same questions, the work that was done, and the credit between.

A question adds to the credit what it would have cost cold-dense, and takes what it did cost. Upkeep (work that no
question waits for) spends only credit. So with an upkeep_share of 1 all work together stays below that of cold-dense,
in tokens and in time.
"""

import math

from vlm_reuse_node.model.work import Work
from vlm_reuse_node.scene.refresh import Totals

# The credit is at most the cold-dense work of this many answers, so that a quiet time pays for no long burst of upkeep.
MOST_ANSWERS = 3


class Account:
    """Books the model's work on one camera.

    spent: all work so far. cold: what cold-dense would have needed for the same questions.
    """

    def __init__(self, measures_time: bool = True) -> None:
        """Start without credit. measures_time: whether the credit must cover the expected time too, not only tokens."""
        self._measures_time = measures_time
        self.spent, self.cold = Work(), Work()
        self._tokens = self._ms = 0.0  # the credit, in both measures
        self._first = Work()  # of the first question
        self._dearest = Work()  # of the question that was the dearest for cold-dense

    def book_question(self, spent: Work, cold: Work, upkeep_share: float) -> None:
        """Book a question: the work that was done for it, and that of cold-dense.

        upkeep_share: all work may be this many times that of cold-dense.
        """
        self.spent += spent
        self.cold += cold
        self._first = self._first if self._first.tokens else cold
        self._dearest = max(self._dearest, cold, key=lambda work: work.tokens)
        most = MOST_ANSWERS * max(upkeep_share, 1.0)
        self._tokens = min(self._tokens + upkeep_share * cold.tokens - spent.tokens, most * self._dearest.tokens)
        self._ms = min(self._ms + upkeep_share * cold.ms - spent.ms, most * self._dearest.ms)

    def book_upkeep(self, spent: Work) -> None:
        """Book work that no question waited for."""
        self.spent += spent
        self._tokens -= spent.tokens
        self._ms -= spent.ms

    def covers(self, expected: Work, *, answers_left: float = 0.0, on_trust: bool = False) -> bool:
        """Whether the credit pays for this much work, in tokens and in time.

        answers_left: so many times the cold-dense work of an answer must be left then.
        on_trust: the first question's work may be overdrawn. Only what is likely to earn may use that.
        """
        spare = (self._first if on_trust else Work()) - expected
        tokens = self._tokens + spare.tokens - answers_left * self._dearest.tokens
        ms = self._ms + spare.ms - answers_left * self._dearest.ms
        return tokens >= 0 and (ms >= 0 or not self._measures_time)

    def share(self, work: Work) -> float:
        """This work as a share of the cold-dense work of an answer; infinite before the first."""
        most = self._dearest.ms if self._measures_time else self._dearest.tokens
        return (work.ms if self._measures_time else work.tokens) / most if most else math.inf

    @property
    def totals(self) -> Totals:
        """The totals in milliseconds."""
        return Totals(self.spent.ms, self.cold.ms, self._ms)
