"""From a state to what the model says: read the question behind the snapshot, score its choices or decode, restore."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import InvalidRequestError
from vlm_reuse_node.model.prompt import PromptTemplate
from vlm_reuse_node.model.sampling import ConfidenceSampler, sampler
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.session.outcome import Outcome
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.state import State
from vlm_reuse_node.session.turn import Turn

HALF_A_LETTER = '\ufffd'  # what a tokenizer shows where a letter's other bytes are still to come


@dataclass(frozen=True)
class TokenizedQuestion:
    """A question that was checked, as the model reads it.

    needed: tokens that an answer must have room for: of the longest choice, or as many as the planner asked for.
    temperature, seed: see `sampling.sampler`. grammar: of the question's json_schema, '' for none.
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
        """Prompt and choice tokens to be computed for it."""
        return len(self.tokens) + sum(map(len, self.choices))


class Answerer:
    """Answers questions from states of one model, whichever camera's."""

    def __init__(self, vlm: Vlm, template: PromptTemplate):
        """Prepare. template: any of the model's; what is behind the frames is the same in all."""
        self._vlm, self._template = vlm, template

    def tokenize(self, question: Question, config: Config) -> TokenizedQuestion:
        """Check a question and put it into tokens. Raises InvalidRequestError."""
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

    def answer(self, state: State, asked: TokenizedQuestion, turn: Turn) -> Outcome:
        """What the model says; the state is put back, whatever happens.

        Raises InvalidRequestError when it does not fit, Halt, or whatever the model raises.
        """
        room = self._room(state.tokens + len(asked.tokens), asked.needed)
        turn.tell('prefill')
        try:
            # 1. Prefill the question right behind the snapshot.
            start = state.next_position
            logits = self._vlm.read(state.cache, asked.tokens, start, turn.check)
            turn.lap('prefill_ms')
            # 2. Score the choices, or decode.
            turn.tell('decode')
            start += len(asked.tokens)
            if asked.choices:
                outcome = self._choose(state, asked, logits, start, turn)
            else:
                outcome = self._write(state, asked, logits, start, room, turn)
            turn.lap('decode_ms')
            return outcome
        finally:
            # 3. Put the state back, whatever happened.
            state.restore()

    def _room(self, prompt: int, needed: int) -> int:
        """Tokens that the model's context leaves for an answer. Refuses an answer that may need more."""
        context = self._vlm.context or sys.maxsize
        if prompt + needed > context:
            raise InvalidRequestError(
                f'Prompt and answer may take {prompt + needed} tokens; expected up to {context}, '
                f"the model's context. Ask shorter, or for fewer tokens (max_tokens)."
            )
        return context - prompt

    def _choose(self, state: State, asked: TokenizedQuestion, logits: Any, start: int, turn: Turn) -> Outcome:
        """The most probable choice; the first answer token's position is `start`."""
        scores = self._vlm.score(state.cache, logits, start, asked.choices, turn.check)
        best = int(np.argmax(scores))
        return Outcome(asked.question.choices[best], scores[best], best, scores)

    def _write(self, state: State, asked: TokenizedQuestion, logits: Any, start: int, room: int, turn: Turn) -> Outcome:
        """Free text, or a document under a grammar, of at most `room` tokens; logits: behind the question."""
        confident = ConfidenceSampler(sampler(asked.temperature, asked.seed))
        most = min(asked.question.max_tokens, room)
        if asked.grammar:
            text, ids = self._write_document(state, asked, logits, start, most, turn, confident)
            return Outcome(text, confident.least, token_ids=ids)
        ids = self._decode(state, logits, start, most, turn, confident, self._vlm.text)
        message = f'The answer was cut at max_tokens {most}.' if len(ids) == most else ''
        return Outcome(self._vlm.text(list(ids)), confident.least, token_ids=ids, message=message)

    def _write_document(
        self,
        state: State,
        asked: TokenizedQuestion,
        logits: Any,
        start: int,
        most: int,
        turn: Turn,
        confident: ConfidenceSampler,
    ) -> tuple[str, tuple[int, ...]]:
        """Text that follows the question's json_schema, and its tokens."""
        schemas = self._vlm.json_schemas
        writer = schemas.sampler(asked.grammar, confident)
        ids = self._decode(state, logits, start, most, turn, writer, writer.text)
        if not writer.is_complete:
            raise InvalidRequestError(
                f'The answer did not fit into max_tokens {most}, and what was cut follows no '
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
        sample: Callable[[Any], int],
        text: Callable[[list[int]], str],
    ) -> tuple[int, ...]:
        """Decode at most so many tokens; who listens hears the text grow."""

        def on_token(ids: list[int]) -> None:
            if turn.is_heard:
                turn.tell('decode', text(ids).rstrip(HALF_A_LETTER), len(ids))

        return tuple(self._vlm.decode(state.cache, logits, start, most, turn.check, sample, on_token))
