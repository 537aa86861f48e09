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
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import InvalidRequestError
from vlm_reuse_node.model.prompt import PromptTemplate
from vlm_reuse_node.model.sampling import ConfidenceSampler, TextSampler, sampler
from vlm_reuse_node.model.token_tree import Block
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.model.work import Work
from vlm_reuse_node.session.outcome import Outcome
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.state import State
from vlm_reuse_node.session.turn import SharedTurn, Turn

# Decodes an answer with a sampler and a listener (`sample`, `on_token`), and returns its tokens.
Decode = Callable[..., list[int]]

# A text may have so many tokens of thoughts before its max_tokens begin to count, if the context has room for them.
MOST_THOUGHTS = 2048
INCOMPLETE_CHARACTER = '\ufffd'  # decoded from a character whose remaining bytes are in later tokens


@dataclass(frozen=True)
class TokenizedQuestion:
    """A checked question in tokens.

    needed: tokens that the context must have room for: those of the longest choice, or the question's max_tokens.
    thoughts: most tokens of thoughts before the text; 0: it is answered without.
    temperature, seed: see `sampling.sampler`.
    grammar: compiled from the question's json_schema; '' without one.
    """

    question: Question
    needed: int
    thoughts: int
    tokens: list[int]
    choices: list[list[int]]
    temperature: float
    seed: int
    grammar: str

    @property
    def cost(self) -> int:
        """Number of prompt and choice tokens that the model computes for this question."""
        return len(self.tokens) + sum(map(len, self.choices))

    @cached_property
    def key(self) -> tuple:
        """Everything that an answer depends on, beside the state."""
        return (
            array('I', self.tokens).tobytes(),  # 4 bytes a token
            self.question.choices,
            self.grammar,
            self.question.max_tokens,
            self.temperature,
            self.seed,
        )

    def blocks(self, number: int = 0) -> list[Block]:
        """The question and behind it the choices. number: of the question's block."""
        return [Block(self.tokens), *(Block(choice, number, is_answer=True) for choice in self.choices)]


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
        thinks = self._template.thinking and not (choices or complete.json_schema)
        return TokenizedQuestion(
            complete,
            max(map(len, choices), default=question.max_tokens or 1),
            MOST_THOUGHTS if thinks else 0,
            self._template.question(complete.text, thinks),
            choices,
            config.temperature,
            config.seed,
            self._vlm.json_schemas.grammar(complete.json_schema) if complete.json_schema else '',
        )

    def expected(self, tokenized: TokenizedQuestion) -> Work:
        """The most tokens that an answer to this question may take, and the time that it is likely to take."""
        meter = self._vlm.meter
        decoded = 0 if tokenized.choices else tokenized.question.max_tokens + tokenized.thoughts
        ms = meter.read.ms(len(tokenized.tokens)) + min(decoded, self._mean_decoded) * meter.decode.ms(1)
        ms += sum(meter.read.ms(len(choice)) for choice in tokenized.choices)
        return Work(0, tokenized.cost, decoded, ms)

    def work(self, state: State, tokenized: TokenizedQuestion, outcome: Outcome) -> Work:
        """What cold-dense would have spent on this answer, beside the state. Its time is the expected one."""
        meter, tokens = self._vlm.meter, len(outcome.token_ids)
        left = self._most(state, tokenized) - tokens
        steps = tokens - 1 if not left else tokens + (self._vlm.decodes_ahead and left > 1)  # the one behind its end
        return Work(0, tokenized.cost, steps, meter.read.ms(tokenized.cost) + steps * meter.decode.ms(1))

    def draft(self, state: State, tokenized: TokenizedQuestion, last: Sequence[int]) -> list[int]:
        """Return what of a text's last answer can be verified in the question's pass; [] where nothing can be."""
        blocks = [Block(tokenized.tokens), Block(list(last[: self._most(state, tokenized) - 1]), 0, is_answer=True)]
        return blocks[1].ids if blocks[1].ids and state.can_read_at_once(blocks) else []

    def answer(self, state: State, tokenized: TokenizedQuestion, turn: Turn, draft: Sequence[int] = ()) -> Outcome:
        """Let the model answer. The state is restored in any case.

        draft: see `draft`. The answer does not depend on it.
        Raises InvalidRequestError when the question does not fit into the context, Halt, or what the model raises.
        """
        self.check_room(state, tokenized)
        if tokenized.choices:
            (outcome,) = self.choose(state, [tokenized], turn)
            return outcome
        most = self._most(state, tokenized)
        turn.report('prefill')
        try:
            # 1. Prefill the question right behind the snapshot, and the draft behind it.
            blocks = [Block(tokenized.tokens), *([Block(list(draft), 0, is_answer=True)] if draft else [])]
            reading = state.read(blocks, stay=len(blocks), check=turn.check)
            turn.lap('prefill_ms')
            # 2. Decode.
            turn.report('decode')
            decode = partial(
                self._vlm.decode,
                state.cache,
                reading.joined,
                state.next_position + len(tokenized.tokens),
                most,
                turn.check,
                draft=draft,
                keep=lambda tokens: reading.keep(len(tokenized.tokens) + tokens),
            )
            outcome = self._write(tokenized, most, turn, decode)
            turn.lap('decode_ms')
            tokens = len(outcome.token_ids)
            if tokens:
                self._mean_decoded = (
                    tokens if math.isinf(self._mean_decoded) else 0.8 * self._mean_decoded + 0.2 * tokens
                )
            return outcome
        finally:
            # 3. Restore the state, also after an error.
            state.restore()

    def choose(self, state: State, questions: Sequence[TokenizedQuestion], turn: Turn | SharedTurn) -> list[Outcome]:
        """Score the choices of several questions in one pass; return the most probable one of each.

        For each question there must be room (`check_room`). Raises Halt, or what the model raises. The state is
        restored in any case.
        """
        blocks: list[Block] = []
        for tokenized in questions:
            blocks += tokenized.blocks(len(blocks))
        turn.report('prefill')
        try:
            logits = iter(state.read(blocks, check=turn.check).logits)
            turn.check()  # who was cancelled meanwhile, or is late, gets no answer
            outcomes = []
            for tokenized in questions:
                end = next(logits)
                scores = self._vlm.shares(end, [(choice, next(logits)) for choice in tokenized.choices])
                best = int(np.argmax(scores))
                outcomes.append(Outcome(tokenized.question.choices[best], scores[best], best, scores))
            turn.lap('prefill_ms')
            return outcomes
        finally:
            state.restore()

    def check_room(self, state: State, tokenized: TokenizedQuestion) -> None:
        """Refuse (InvalidRequestError) a question that may need more than the model's context."""
        prompt, context = state.tokens + len(tokenized.tokens), self._vlm.context or sys.maxsize
        if prompt + tokenized.needed > context:
            raise InvalidRequestError(
                f'Prompt and answer may take {prompt + tokenized.needed} tokens; expected at most {context}, '
                f"the model's context. Shorten the question, or allow fewer tokens (max_tokens)."
            )

    def _most(self, state: State, tokenized: TokenizedQuestion) -> int:
        """Most tokens of a text and its thoughts: all that are allowed, or what the context leaves."""
        context = self._vlm.context or sys.maxsize
        allowed = tokenized.question.max_tokens + tokenized.thoughts
        return min(allowed, context - state.tokens - len(tokenized.tokens))

    def _write(self, tokenized: TokenizedQuestion, most: int, turn: Turn, decode: Decode) -> Outcome:
        """Write free text, or a document under a grammar, of at most `most` tokens."""
        confident = ConfidenceSampler(sampler(tokenized.temperature, tokenized.seed))
        if tokenized.grammar:
            text, ids = self._write_document(tokenized, most, turn, decode, confident)
            return Outcome(text, confident.least, token_ids=ids)
        allowed = min(most, tokenized.question.max_tokens)
        thoughts = most - allowed if tokenized.thoughts else most
        writer = TextSampler(confident, self._template.spoken, thoughts, allowed, self._vlm.stop_ids)
        ids = tuple(
            decode(
                sample=writer,
                on_token=_listener(turn, partial(self._said, goes_on=True), thinks=tokenized.thoughts > 0),
            )
        )
        spoken = len(self._template.spoken(ids))
        if not spoken and (ids or writer.is_cut):
            more = 'set thinking to false' if tokenized.thoughts else 'allow more tokens (max_tokens)'
            raise InvalidRequestError(
                f'The model was still thinking after {len(ids)} tokens, and thoughts are no answer. Ask with choices '
                f'or a json_schema, which are answered without thoughts, or {more}.'
            )
        message = f'The answer was cut at max_tokens {allowed}.' if spoken == allowed else ''
        if spoken < len(ids):
            message = f'{len(ids) - spoken} of {len(ids)} tokens were thoughts, which are left out. {message}'.rstrip()
        return Outcome(self._said(list(ids)), confident.least, token_ids=ids, message=message)

    def _said(self, ids: list[int], goes_on: bool = False) -> str:
        """The words of a text answer, without the model's thoughts. goes_on: whether more tokens follow."""
        return self._vlm.text(self._template.spoken(ids, goes_on))

    def _write_document(
        self, tokenized: TokenizedQuestion, most: int, turn: Turn, decode: Decode, confident: ConfidenceSampler
    ) -> tuple[str, tuple[int, ...]]:
        """Write a text that follows the question's json_schema. Returns it with its tokens."""
        schemas = self._vlm.json_schemas
        writer = schemas.sampler(tokenized.grammar, confident)
        ids = tuple(decode(sample=writer, on_token=_listener(turn, writer.text)))
        if not writer.is_complete:
            raise InvalidRequestError(
                f'The answer did not fit into max_tokens {most}, and a cut document does not follow '
                'json_schema. Allow more tokens, or a smaller document (maxLength, maxItems).'
            )
        text = writer.text(list(ids))
        schemas.check(text)
        return text, ids


def _listener(turn: Turn, text: Callable[[list[int]], str], thinks: bool = False) -> Callable[[list[int]], None]:
    """What reports the text after every token. thinks: whether thoughts come before it."""

    def on_token(ids: list[int]) -> None:
        if turn.has_listener:
            said = text(ids).rstrip(INCOMPLETE_CHARACTER)
            turn.report('thinking' if thinks and not said else 'decode', said, len(ids))

    return on_token
