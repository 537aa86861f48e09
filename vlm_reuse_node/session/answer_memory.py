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

from array import array

from vlm_reuse_node.session.answerer import TokenizedQuestion
from vlm_reuse_node.session.outcome import Outcome

# As many as there may be standing questions; planners ask fewer about one picture. The longest questions and answers
# that are allowed take about 40 MB together.
MOST_ANSWERS = 64


class AnswerMemory:
    """A camera's last answers. At the limit, the least recently used one goes first."""

    def __init__(self) -> None:
        """Start without an answer."""
        # By question, the least recently used first: the version of the state that answered, and its answer.
        self._answers: dict[tuple, tuple[int, Outcome]] = {}

    def recall(self, version: int, question: TokenizedQuestion) -> Outcome | None:
        """Return the answer that this version of the state gave to the same question; None if it is not known.

        version: see `State`.
        """
        key = _key(question)
        if key not in self._answers:
            return None
        self._answers[key] = kept = self._answers.pop(key)
        return kept[1] if kept[0] == version else None

    def draft(self, question: TokenizedQuestion) -> tuple[int, ...]:
        """Return the tokens of the last answer to the same question, from any version of the state; () without one."""
        kept = self._answers.get(_key(question))
        return kept[1].token_ids if kept else ()

    def remember(self, version: int, question: TokenizedQuestion, answer: Outcome) -> None:
        """Keep an answer in place of an older one to the same question."""
        self._answers.pop(_key(question), None)
        self._answers[_key(question)] = version, answer
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
