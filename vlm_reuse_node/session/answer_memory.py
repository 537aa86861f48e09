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

"""Remembers the answers of one state: the same question to the same state has the same answer, so it is not computed.

That holds for sampled text too: its random numbers follow from the seed alone.
"""

from array import array
from typing import NamedTuple

from vlm_reuse_node.model.work import Work
from vlm_reuse_node.session.answerer import TokenizedQuestion
from vlm_reuse_node.session.outcome import Outcome

# As many as there may be standing questions; planners ask fewer about one picture. The longest questions and answers
# that are allowed take about 40 MB together.
MOST_ANSWERS = 64


class RememberedAnswer(NamedTuple):
    """A complete answer, and the work that it took beside that of the state."""

    outcome: Outcome
    work: Work


class AnswerMemory:
    """The answers that one version of a camera's state gave. At the limit, the least recently used one goes first."""

    def __init__(self) -> None:
        """Start without an answer."""
        self._version: int | None = None  # of the state that all answers come from
        self._answers: dict[tuple, RememberedAnswer] = {}  # by question, the least recently used first

    def recall(self, version: int, question: TokenizedQuestion) -> RememberedAnswer | None:
        """Return the answer that this version of the state gave to the same question; None if it is not known.

        version: see `State`.
        """
        if version != self._version:
            return None
        answer = self._answers.pop(_key(question), None)
        if answer:
            self._answers[_key(question)] = answer
        return answer

    def remember(self, version: int, question: TokenizedQuestion, answer: RememberedAnswer) -> None:
        """Keep an answer. Those of another version are forgotten: no state will have that version again."""
        if version != self._version:
            self._version = version
            self._answers.clear()
        self._answers.pop(_key(question), None)
        self._answers[_key(question)] = answer
        if len(self._answers) > MOST_ANSWERS:
            del self._answers[next(iter(self._answers))]


def _key(question: TokenizedQuestion) -> tuple:
    """Everything that an answer depends on, beside the state."""
    asked = question.question
    return (
        array('I', question.tokens).tobytes(),  # 4 bytes a token
        asked.choices,
        question.grammar,
        asked.max_tokens,
        question.temperature,
        question.seed,
    )
