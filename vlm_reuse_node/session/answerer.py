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

"""Answers a question from a state: prefill it behind the snapshot, score its choices or decode, restore the state."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import InvalidRequestError
from vlm_reuse_node.model.prompt import PromptTemplate
from vlm_reuse_node.model.sampling import ConfidenceSampler, Sampler, sampler
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.model.work import Work
from vlm_reuse_node.session.outcome import Outcome
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.state import State
from vlm_reuse_node.session.turn import Turn

INCOMPLETE_CHARACTER = '\ufffd'  # decoded from a character whose remaining bytes are in later tokens


@dataclass(frozen=True)
class TokenizedQuestion:
    """A checked question in tokens.

    needed: tokens that the context must have room for: those of the longest choice, or the question's max_tokens.
    temperature, seed: see `sampling.sampler`.
    grammar: compiled from the question's json_schema; '' without one.
    """

    question: Question
    needed: int
    tokens: list[int]
    choices: list[list[int]]
    temperature: float
    seed: int
    grammar: str

    @property
    def cost(self) -> int:
        """Number of prompt and choice tokens that the model computes for this question."""
        return len(self.tokens) + sum(map(len, self.choices))


class Answerer:
    """Answers questions from the states of one model. It serves any camera."""

    def __init__(self, vlm: Vlm, template: PromptTemplate) -> None:
        """Store the model and a prompt template. The part behind the frames is the same in all templates of a model."""
        self._vlm, self._template = vlm, template
        self._mean_decoded = math.inf  # tokens of a text: a running mean

    def tokenize(self, question: Question, config: Config) -> TokenizedQuestion:
        """Check a question and convert it to tokens. Raises InvalidRequestError."""
        complete = question.completed(config)
        choices = self._template.choices(complete.choices)
        return TokenizedQuestion(
            complete,
            max(map(len, choices), default=question.max_tokens or 1),
            self._template.question(complete.text),
            choices,
            config.temperature,
            config.seed,
            self._vlm.json_schemas.grammar(complete.json_schema) if complete.json_schema else '',
        )

    def expected(self, tokenized: TokenizedQuestion) -> Work:
        """The most tokens that an answer to this question may take, and the time that it is likely to take."""
        meter = self._vlm.meter
        decoded = 0 if tokenized.choices else tokenized.question.max_tokens
        ms = meter.read.ms(len(tokenized.tokens)) + min(decoded, self._mean_decoded) * meter.decode.ms(1)
        ms += sum(meter.read.ms(len(choice)) for choice in tokenized.choices)
        return Work(0, tokenized.cost, decoded, ms)

    def answer(self, state: State, tokenized: TokenizedQuestion, turn: Turn) -> Outcome:
        """Let the model answer. The state is restored in any case.

        Raises InvalidRequestError when the question does not fit into the context, Halt, or what the model raises.
        """
        room = self._room(state.tokens + len(tokenized.tokens), tokenized.needed)
        turn.report('prefill')
        try:
            # 1. Prefill the question right behind the snapshot.
            start = state.next_position
            logits = self._vlm.read(state.cache, tokenized.tokens, start, turn.check)
            turn.lap('prefill_ms')
            # 2. Score the choices, or decode.
            turn.report('decode')
            start += len(tokenized.tokens)
            if tokenized.choices:
                outcome = self._choose(state, tokenized, logits, start, turn)
            else:
                outcome = self._write(state, tokenized, logits, start, room, turn)
            turn.lap('decode_ms')
            if outcome.token_ids:
                tokens = len(outcome.token_ids)
                self._mean_decoded = (
                    tokens if math.isinf(self._mean_decoded) else 0.8 * self._mean_decoded + 0.2 * tokens
                )
            return outcome
        finally:
            # 3. Restore the state, also after an error.
            state.restore()

    def _room(self, prompt: int, needed: int) -> int:
        """Number of tokens that the model's context leaves for an answer. Refuses a question that may need more."""
        context = self._vlm.context or sys.maxsize
        if prompt + needed > context:
            raise InvalidRequestError(
                f'Prompt and answer may take {prompt + needed} tokens; expected at most {context}, '
                f"the model's context. Shorten the question, or allow fewer tokens (max_tokens)."
            )
        return context - prompt

    def _choose(self, state: State, tokenized: TokenizedQuestion, logits: Any, start: int, turn: Turn) -> Outcome:
        """Score the choices and return the most probable one. start: position of the first answer token."""
        scores = self._vlm.score(state.cache, logits, start, tokenized.choices, turn.check)
        best = int(np.argmax(scores))
        return Outcome(tokenized.question.choices[best], scores[best], best, scores)

    def _write(
        self, state: State, tokenized: TokenizedQuestion, logits: Any, start: int, room: int, turn: Turn
    ) -> Outcome:
        """Write free text, or a document under a grammar, of at most `room` tokens. logits: after the question."""
        confident = ConfidenceSampler(sampler(tokenized.temperature, tokenized.seed))
        most = min(tokenized.question.max_tokens, room)
        if tokenized.grammar:
            text, ids = self._write_document(state, tokenized, logits, start, most, turn, confident)
            return Outcome(text, confident.least, token_ids=ids)
        ids = self._decode(state, logits, start, most, turn, confident, self._vlm.text)
        message = f'The answer was cut at max_tokens {most}.' if len(ids) == most else ''
        return Outcome(self._vlm.text(list(ids)), confident.least, token_ids=ids, message=message)

    def _write_document(
        self,
        state: State,
        tokenized: TokenizedQuestion,
        logits: Any,
        start: int,
        most: int,
        turn: Turn,
        confident: ConfidenceSampler,
    ) -> tuple[str, tuple[int, ...]]:
        """Write a text that follows the question's json_schema. Returns it with its tokens."""
        schemas = self._vlm.json_schemas
        writer = schemas.sampler(tokenized.grammar, confident)
        ids = self._decode(state, logits, start, most, turn, writer, writer.text)
        if not writer.is_complete:
            raise InvalidRequestError(
                f'The answer did not fit into max_tokens {most}, and a cut document does not follow '
                'json_schema. Allow more tokens, or a smaller document (maxLength, maxItems).'
            )
        text = writer.text(list(ids))
        schemas.check(text)
        return text, ids

    def _decode(
        self,
        state: State,
        logits: Any,
        start: int,
        most: int,
        turn: Turn,
        sample: Sampler,
        text: Callable[[list[int]], str],
    ) -> tuple[int, ...]:
        """Decode at most `most` tokens. The listener gets the text after every token."""

        def on_token(ids: list[int]) -> None:
            if turn.has_listener:
                turn.report('decode', text(ids).rstrip(INCOMPLETE_CHARACTER), len(ids))

        return tuple(self._vlm.decode(state.cache, logits, start, most, turn.check, sample, on_token))
