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

"""Asks a session questions, and compares what it answers with a cold reference."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from vlm_reuse_node.check.bits import has_trace, rows, state_bits
from vlm_reuse_node.check.claim import CheckError, Claim
from vlm_reuse_node.check.cold import Cold, ColdRun, columns_of, log_of, log_table
from vlm_reuse_node.model import vlm as vlms
from vlm_reuse_node.model.token_tree import Block
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.session.answer import Answer, Status
from vlm_reuse_node.session.answerer import Answerer, TokenizedQuestion
from vlm_reuse_node.session.case import Case
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession
from vlm_reuse_node.session.state import State
from vlm_reuse_node.session.turn import Turn

COLUMNS = 64  # of a vocabulary: the most probable tokens, enough to see any fault
CHOICES, TEXTS = 'log-probabilities of choices', 'log-probabilities of texts'


@dataclass
class Asked:
    """A question, its answer, and what was seen around it.

    columns: the tokens that are the most probable before each token of a text, (tokens + 1, COLUMNS), from the kept
        state; and table: their log-probabilities. None for other answers.
    restored: whether the state is bit for bit what it was; None where there was none before.
    cold: a document's cold answer. is_equal: whether the answer is the cold one, see `compare`.
    """

    tokenized: TokenizedQuestion
    answer: Answer
    passes: int = 0
    columns: np.ndarray | None = None
    table: np.ndarray | None = None
    restored: bool | None = None
    cold: Answer | None = None
    is_equal: bool = False
    faults: list[str] = field(default_factory=list)

    @property
    def is_text(self) -> bool:
        """Whether the answer is free text: no choices, no document."""
        return not self.tokenized.choices and not self.tokenized.grammar


class Asker:
    """Asks one session. answerer: turns questions into tokens as the session's own does."""

    def __init__(self, vlm: vlms.Vlm, session: SceneSession) -> None:
        """Ask this session."""
        self._vlm, self.session = vlm, session
        self.answerer = Answerer(vlm, vlm.template(session.config.system_prompt, 1))

    @property
    def state(self) -> State:
        """The kept state."""
        return self.session.state

    def ask(self, question: Question, level: Level, frame: Frame | None = None) -> Asked:
        """Ask. level: the expected one. frame: a newer picture; the state is brought up to exactly that one.

        Raises CheckError when the model fails: no state is left then.
        """
        vlm, session = self._vlm, self.session
        before_bits = None if frame else state_bits(self.state)
        before, now_ns = vlm.meter.done, (frame or session.newest).stamp_ns
        given = replace(question, force_refresh=frame is not None and level is not Level.PATCH)
        answer = session.ask(given, now_ns=now_ns, newest=lambda: frame)
        asked = Asked(self.answerer.tokenize(question, session.config), answer, (vlm.meter.done - before).passes)
        asked.faults += _faults(question, answer, level)
        if answer.status == Status.MODEL_ERROR:
            raise CheckError(' '.join(asked.faults))
        if answer.status != Status.OK:
            return asked
        self._look_for_traces(asked, before_bits)
        if asked.is_text:
            self._read(asked)
        elif asked.tokenized.grammar:
            asked.cold = session.ask_cold(question, now_ns=now_ns)
        return asked

    def ask_together(self, questions: Sequence[Question]) -> tuple[list[Asked], int]:
        """Ask several questions with choices at once. Returns them, and the passes that they took together."""
        before_bits, before = state_bits(self.state), self._vlm.meter.done
        cases = [Case(question, self.session.newest.stamp_ns, Turn()) for question in questions]
        self.session.ask_together(cases)
        passes = (self._vlm.meter.done - before).passes
        asked = [
            Asked(self.answerer.tokenize(case.question, self.session.config), case.answer, passes) for case in cases
        ]
        for each in asked:
            each.faults += _faults(each.tokenized.question, each.answer, Level.REUSE)
        self._look_for_traces(asked[0], before_bits)
        return asked, passes

    def _look_for_traces(self, asked: Asked, before: bytes | None) -> None:
        if has_trace(self.state):
            asked.faults.append('The cache does not end at the snapshot after a question.')
            asked.restored = False
        elif before is not None:
            asked.restored = state_bits(self.state) == before
            if not asked.restored:
                asked.faults.append('The state is not bit for bit what it was before the question.')

    def _read(self, asked: Asked) -> None:
        """Read log-probabilities along the answer from the kept state."""
        blocks = [Block(asked.tokenized.tokens)]
        if asked.answer.token_ids:
            blocks.append(Block(list(asked.answer.token_ids), 0, is_answer=True))
        try:
            table = log_table(self.state.read(blocks).joined)
        finally:
            self.state.restore()
        asked.columns = np.argsort(-table, axis=-1)[:, :COLUMNS]
        asked.table = columns_of(table, asked.columns)


def compare(claim: Claim, asked: Sequence[Asked], cold: Cold, state: State | None) -> None:
    """Compare answers with those of a cold reference about the same pictures.

    state: the state they were given from, whose arrays are compared too; None: only the answers are.
    """
    claim.asked += len(asked)
    for each in asked:
        claim.passes.append(each.passes)
        claim.restored += each.restored is True
        claim.restored_of += each.restored is not None
        claim.fail(each.faults)
    answered = [each for each in asked if each.answer.status == Status.OK]
    texts = [each for each in answered if each.table is not None]
    scored = [each for each in answered if each.tokenized.choices]
    if texts:
        claim.compare(
            TEXTS,
            cold.difference(
                [array for each in texts for array in (each.table, log_of([each.answer.confidence]))],
                lambda run: [array for each in texts for array in _cold_text(cold, run, each)],
            ),
        )
    if scored:
        claim.compare(
            CHOICES,
            cold.difference(
                [log_of(each.answer.choice_scores) for each in scored],
                lambda run: [cold.scores(run, each.tokenized.tokens, each.tokenized.choices) for each in scored],
            ),
        )
    if state is not None:
        compare_arrays(claim, cold, state)
    for each in answered:
        gap, noise = _gap(each, cold), claim.differences.get(CHOICES if each.tokenized.choices else TEXTS)
        each.is_equal = gap == 0 or (noise is not None and gap < noise.bound and not claim.is_measurement)
        if each.is_equal:
            claim.equal += 1
            claim.ties += gap > 0
        elif not claim.is_measurement:
            claim.fail(['An answer is not the cold one: less probable tokens were taken.'])


def compare_arrays(claim: Claim, cold: Cold, state: State) -> None:
    """Compare features, keys and values with those of a cold reference, which knows the state's features."""
    claim.compare('visual features', cold.features)
    if kept := rows(state.cache, cold.tokens):
        claim.compare('keys and values', cold.difference(kept, lambda run: rows(run.cache, cold.tokens)))


def _faults(question: Question, answer: Answer, level: Level) -> list[str]:
    """What is wrong with an answer on its own."""
    if answer.status != Status.OK:
        return [f"No answer to '{question.text}': {answer.status}, {answer.message}"]
    found = []
    if answer.remembered:
        found.append('An answer was remembered from another state.')
    if answer.level != level:
        found.append(f'An answer waited for level {answer.level}; expected {level}.')
    return found


def _cold_text(cold: Cold, run: ColdRun, each: Asked) -> tuple[np.ndarray, np.ndarray]:
    """The cold log-probabilities in a text's columns, and that of its least probable token."""
    table = cold.table(run, each.tokenized.tokens, each.answer.token_ids)
    return columns_of(table, each.columns), log_of([np.exp(min(_taken(table, each, cold)))])


def _taken(table: np.ndarray, each: Asked, cold: Cold) -> list[float]:
    """Log-probability of each token of a text, and of the end if it ended by itself."""
    ids = each.answer.token_ids
    taken = [float(table[row, token]) for row, token in enumerate(ids)]
    if len(ids) < each.tokenized.question.max_tokens:
        taken.append(float(table[len(ids), list(cold.stop_ids)].max()))
    return taken


def _gap(each: Asked, cold: Cold) -> float:
    """How much more probable than an answer's tokens the cold ones are: the largest log-ratio; 0 where they are equal.

    A document is compared with the one that the session gives cold; it is equal, or it is not.
    """
    tokenized, answer = each.tokenized, each.answer
    if tokenized.choices:
        scores = cold.scores(cold.run(), tokenized.tokens, tokenized.choices)
        return float(scores.max() - scores[answer.choice_index])
    table = cold.table(cold.run(), tokenized.tokens, answer.token_ids)
    if each.cold is not None:
        return 0.0 if each.cold.token_ids == answer.token_ids else _first_gap(table, answer, each.cold)
    return max(float(table[row].max()) - taken for row, taken in enumerate(_taken(table, each, cold)))


def _first_gap(table: np.ndarray, answer: Answer, cold: Answer) -> float:
    """How far the first tokens that differ are apart, where both answers have one."""
    for row, (mine, theirs) in enumerate(zip(answer.token_ids, cold.token_ids)):
        if mine != theirs:
            return float(abs(table[row, mine] - table[row, theirs]))
    return float('inf')
