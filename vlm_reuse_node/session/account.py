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

from vlm_reuse_node.model.work import Work
from vlm_reuse_node.scene.refresh import Totals

# The credit is at most the cold-dense work of this many answers, so that a quiet time pays for no long burst of upkeep.
MOST_ANSWERS = 3


class Account:
    """Books the model's work on one camera.

    spent: all work so far. cold: what cold-dense would have needed for the same questions.
    """

    def __init__(self, measures_time: bool = True) -> None:
        """Start without credit.

        measures_time: whether the credit must cover work in time too. Without, what it covers is the same every time.
        """
        self._measures_time = measures_time
        self.spent, self.cold = Work(), Work()
        self._tokens = self._ms = 0.0  # the credit, in both measures
        self._dearest = Work()  # the question that was the dearest for cold-dense

    def book_question(self, spent: Work, cold: Work, upkeep_share: float) -> None:
        """Book a question: the work that was done for it, and that of cold-dense.

        upkeep_share: all work may be this many times that of cold-dense.
        """
        self.spent += spent
        self.cold += cold
        self._dearest = max(self._dearest, cold, key=lambda work: work.tokens)
        most = MOST_ANSWERS * max(upkeep_share, 1.0)
        self._tokens = min(self._tokens + upkeep_share * cold.tokens - spent.tokens, most * self._dearest.tokens)
        self._ms = min(self._ms + upkeep_share * cold.ms - spent.ms, most * self._dearest.ms)

    def book_upkeep(self, spent: Work) -> None:
        """Book work that no question waited for."""
        self.spent += spent
        self._tokens -= spent.tokens
        self._ms -= spent.ms

    def covers(self, expected: Work) -> bool:
        """Whether the credit pays for this much work, in tokens and, where time is measured, in time."""
        return expected.tokens <= self._tokens and (not self._measures_time or expected.ms <= self._ms)

    @property
    def totals(self) -> Totals:
        """The totals in milliseconds."""
        return Totals(self.spent.ms, self.cold.ms, self._ms)
