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
in tokens and in expected time.

There are two credits. That of upkeep counts cold-dense's work times upkeep_share. That of risks (patched
answers and drafts, which may be in vain) counts it at least once: an upkeep_share below 1 holds upkeep back, not what a
question may save.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vlm_reuse_node.model.work import Work
from vlm_reuse_node.scene.refresh import Totals

# The credit is at most the cold-dense work of this many answers, so that a quiet time pays for no long burst of upkeep.
MOST_ANSWERS = 3


@dataclass
class _Credit:
    """Credit in both measures."""

    tokens: float = 0.0
    ms: float = 0.0

    def earn(self, cold: Work, share: float, dearest: Work) -> None:
        """Add a share of cold-dense's work for a question. dearest: that for the dearest question, for the limit."""
        most = MOST_ANSWERS * max(share, 1.0)
        self.tokens = min(self.tokens + share * cold.tokens, most * dearest.tokens)
        self.ms = min(self.ms + share * cold.ms, most * dearest.ms)

    def spend(self, work: Work) -> None:
        """Take work away; what is left may be negative."""
        self.tokens -= work.tokens
        self.ms -= work.ms

    def forget_debt(self) -> None:
        """Begin anew at 0 if it is negative."""
        self.tokens, self.ms = max(0.0, self.tokens), max(0.0, self.ms)


class Account:
    """Books the model's work on one camera.

    spent: all work so far. cold: what cold-dense would have needed for the same questions.
    """

    def __init__(self, measures_time: bool = True) -> None:
        """Start without credit. measures_time: whether the credit must cover the expected time too, not only tokens."""
        self._measures_time = measures_time
        self.spent, self.cold = Work(), Work()
        self._share: float | None = None  # the upkeep_share of the last question
        self._of_upkeep, self._of_risks = _Credit(), _Credit()
        self._first = Work()  # of the first question
        self._dearest = Work()  # of the question that was the dearest for cold-dense

    def book_questions(self, spent: Work, colds: Sequence[Work], upkeep_share: float) -> None:
        """Book questions that were answered together: the work that was done, and that of cold-dense for each.

        upkeep_share: all work may be this many times that of cold-dense. After a change of it no debt is left: a
        camera that did much upkeep, or was allowed little, would else do none for a long time.
        """
        if self._share not in (None, upkeep_share):
            self._of_upkeep.forget_debt()
            self._of_risks.forget_debt()
        self._share = upkeep_share
        self._spend(spent)
        for cold in colds:
            self.cold += cold
            self._first = self._first if self._first.tokens else cold
            self._dearest = max(self._dearest, cold, key=lambda work: work.tokens)
            self._of_upkeep.earn(cold, upkeep_share, self._dearest)
            self._of_risks.earn(cold, max(upkeep_share, 1.0), self._dearest)

    def book_upkeep(self, spent: Work) -> None:
        """Book work that no question waited for."""
        self._spend(spent)

    def covers_upkeep(self, expected: Work, *, answers_left: float = 0.0) -> bool:
        """Whether the credit pays for this much upkeep, in tokens and in time.

        answers_left: so many times the cold-dense work of an answer must be left then.
        """
        left = self._dearest
        return self._covers(
            self._of_upkeep, expected.tokens + answers_left * left.tokens, expected.ms + answers_left * left.ms
        )

    def covers_patch(self, expected: Work) -> bool:
        """Whether the credit pays for this much more than cold-dense, which an unsure patched answer may cost.

        The first question's work may be overdrawn, because a patch is likely to earn.
        """
        first = self._first
        return self._covers(self._of_risks, expected.tokens - first.tokens, expected.ms - first.ms)

    def covers_draft(self, expected: Work) -> bool:
        """Whether the credit pays for this much more than cold-dense, which a wrong draft may cost."""
        return self._covers(self._of_risks, expected.tokens, expected.ms)

    def share(self, work: Work) -> float:
        """This work as a share of the cold-dense work of an answer; infinite before the first."""
        most = self._dearest.ms if self._measures_time else self._dearest.tokens
        return (work.ms if self._measures_time else work.tokens) / most if most else math.inf

    @property
    def totals(self) -> Totals:
        """The totals in milliseconds."""
        return Totals(self.spent.ms, self.cold.ms, self._of_upkeep.ms)

    def _covers(self, credit: _Credit, tokens: float, ms: float) -> bool:
        return credit.tokens >= tokens and (credit.ms >= ms or not self._measures_time)

    def _spend(self, work: Work) -> None:
        self.spent += work
        self._of_upkeep.spend(work)
        self._of_risks.spend(work)
