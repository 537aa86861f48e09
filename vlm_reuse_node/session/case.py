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

"""The record of one question while it is answered."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import InvalidRequestError
from vlm_reuse_node.model.work import Work
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.session.answer import Answer, Status
from vlm_reuse_node.session.answerer import TokenizedQuestion
from vlm_reuse_node.session.outcome import Outcome
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.turn import Turn


@dataclass(eq=False)
class Case:
    """One question while it is answered.

    now_ns: its time on the clock of the frames' stamps.
    tokenized: set once the question is checked.
    level: of the dearest refresh that it waited for. refreshed_tokens: prompt tokens that it counts of this refresh.
    outcome: the model's reply. computed: prompt and choice tokens for its replies so far.
    is_remembered: whether the last reply was remembered.
    escalated: whether a patched state gave no reply or an unsure one, so that the question is asked again.
    cold: the work of cold-dense for the reply.
    answer: set at the end. deliver: called with it.
    """

    question: Question
    now_ns: int
    turn: Turn
    deliver: Callable[[Answer], None] = lambda answer: None
    tokenized: TokenizedQuestion | None = None
    level: Level = Level.REUSE
    refreshed_tokens: int = 0
    outcome: Outcome | None = None
    computed: int = 0
    is_remembered: bool = False
    escalated: bool = False
    cold: Work | None = None
    answer: Answer | None = None

    def reply(self, outcome: Outcome) -> None:
        """Take a reply that was computed."""
        self.outcome, self.is_remembered = outcome, False
        self.computed += self.tokenized.cost

    def recall(self, outcome: Outcome) -> None:
        """Take a reply that was remembered. The listener gets its text at once."""
        self.outcome, self.is_remembered = outcome, True
        if outcome.token_ids:
            self.turn.report('decode', outcome.text)
        self.turn.lap('prefill_ms')

    def end(self, answer: Answer) -> None:
        """Set the answer and deliver it."""
        self.answer = answer
        self.deliver(answer)


@contextmanager
def escalating(cases: Sequence[Case], is_exact: bool, config: Config) -> Iterator[None]:
    """Let questions that a patched state cannot answer, such as with a cut document, be asked again of a whole one.

    is_exact: whether the state is a whole one.
    """
    try:
        yield
    except InvalidRequestError:
        if is_exact or any(case.escalated or not case.tokenized.question.least_confidence(config) for case in cases):
            raise
        for case in cases:
            case.escalated = True


def cold_work(cases: Sequence[Case], spent: Work) -> list[Work]:
    """What cold-dense would have spent on each question. spent: what was spent on all of them here.

    Questions that ended early cost cold-dense as much as they did here, because it would have been cut as early: beside
    complete ones their own tokens, if the model has read them; alone all that was spent.
    """
    complete = [case.cold for case in cases if case.answer and case.answer.status is Status.OK]
    if not complete:
        return [min([spent, *(case.cold for case in cases if case.cold)], key=lambda work: work.tokens)]
    cut = [Work(0, case.computed) for case in cases if case.computed and case.answer.status is not Status.OK]
    return complete + cut
