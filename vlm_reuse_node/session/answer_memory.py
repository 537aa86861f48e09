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

"""Remembers answers: the same question to the same state has the same answer, so it is not computed again.

That holds for sampled text too: its random numbers follow from the seed alone. The last answer to a text question is
kept when the state changes, as a draft: the model then has to verify it only.
"""

import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

from vlm_reuse_node.session.answerer import TokenizedQuestion
from vlm_reuse_node.session.outcome import Outcome

# As many as there may be standing questions; planners ask fewer about one picture. The longest questions and answers
# that are allowed take about 40 MB together.
MOST_ANSWERS = 64


class _Kept(NamedTuple):
    """An answer of one version of the state. agreed: its first tokens that the answer before it had too."""

    version: int
    outcome: Outcome
    agreed: float


class AnswerMemory:
    """A camera's last answers. At the limit, the least recently used one goes first."""

    def __init__(self) -> None:
        """Start without an answer."""
        self._answers: dict[tuple, _Kept] = {}  # by question, the least recently used first

    def recall(self, version: int, question: TokenizedQuestion) -> Outcome | None:
        """Return the answer that this version of the state gave to the same question; None if it is not known.

        version: see `State`.
        """
        if (kept := self._answers.pop(question.key, None)) is None:
            return None
        self._answers[question.key] = kept
        return kept.outcome if kept.version == version else None

    def draft(self, question: TokenizedQuestion) -> tuple[int, ...]:
        """Return what the next answer to this question is likely to begin with; () when nothing is known.

        It is the last answer, or a part of it that grows with what the last two had in common: so a text that changes
        costs few tokens in vain.
        """
        kept = self._answers.get(question.key)
        return kept.outcome.token_ids[: int(min(2 * kept.agreed + 2, sys.maxsize))] if kept else ()

    def remember(self, version: int, question: TokenizedQuestion, answer: Outcome) -> None:
        """Keep an answer in place of an older one to the same question."""
        older = self._answers.pop(question.key, None)
        agreed = math.inf if older is None else _agreed(older.outcome.token_ids, answer.token_ids)
        self._answers[question.key] = _Kept(version, answer, agreed)
        if len(self._answers) > MOST_ANSWERS:
            del self._answers[next(iter(self._answers))]


def _agreed(one: Sequence[int], other: Sequence[int]) -> float:
    """How many tokens two texts have in common, from the first on; infinite when they are equal."""
    differing = (number for number, (a, b) in enumerate(zip(one, other)) if a != b)
    return math.inf if one == other else next(differing, min(len(one), len(other)))
