"""From a state to an answer: read the question behind the snapshot, score its choices or decode, put the state back."""

import sys
from dataclasses import dataclass

import numpy as np

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import InvalidRequestError
from vlm_reuse_node.model.prompt import PromptTemplate
from vlm_reuse_node.model.vlm import Noted, Vlm, sampler
from vlm_reuse_node.session import question as questions
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.state import State
from vlm_reuse_node.session.turn import Turn

HALF_A_LETTER = '\ufffd'  # what a tokenizer shows where a letter's other bytes are still to come


@dataclass(frozen=True)
class Asked:
    """A question that was checked, as the model reads it.

    wanted: most tokens the planner asked for, 0 where it left that open. sampling: see `vlm.sampler`. grammar: of the
    question's json_schema, '' for none.
    """

    question: Question
    wanted: int
    tokens: list[int]
    choices: list[list[int]]
    sampling: tuple[float, float, int]
    grammar: str


class Answerer:
    """Answers questions from states of one model, whichever camera's."""

    def __init__(self, vlm: Vlm, template: PromptTemplate):
        """Prepare. template: any of the model's; what is behind the pictures is the same in all."""
        self._vlm, self._template = vlm, template

    def asked(self, question: Question, config: Config) -> Asked:
        """Check a question and put it into tokens. Raises InvalidRequestError."""
        wanted, question = question.max_tokens, questions.checked(question, config)
        return Asked(
            question,
            wanted,
            self._template.question(question.text),
            self._template.choices(question.choices),
            (config.temperature, config.top_p, config.seed),
            self._vlm.json_schemas.grammar(question.json_schema) if question.json_schema else '',
        )

    def answer(self, state: State, asked: Asked, turn: Turn) -> dict:
        """The answer's own fields, by `Answer`'s names; the state is put back, whatever happens.

        Raises InvalidRequestError when it does not fit, Stopped, or whatever the model raises.
        """
        tokens, choices = asked.tokens, asked.choices
        room = self._room(state.tokens + len(tokens), max(map(len, choices), default=asked.wanted or 1))
        turn.tell('prefill')
        try:
            # 1. Prefill the question right behind the snapshot.
            family, start = self._vlm.family, state.next_position
            logits = self._vlm.run(state.cache, tokens, family.text_positions(start, len(tokens)), check=turn.check)
            turn.lap('prefill_ms')
            # 2. Score the choices, or decode.
            start += len(tokens)
            turn.tell('decode')
            if choices:
                scores = self._vlm.score(state.cache, logits, start, choices, turn.check)
                outcome = self._chosen(asked.question, scores)
            else:
                outcome = self._told(state, asked, logits, min(asked.question.max_tokens, room), turn)
            turn.lap('decode_ms')
            return outcome
        finally:
            # 3. Put the state back, whatever happened.
            state.restore()

    def _room(self, prompt, answer):
        """Tokens that the model's context leaves for an answer. Refuses an answer that may need more."""
        context = self._vlm.context or sys.maxsize
        if prompt + answer > context:
            raise InvalidRequestError(
                f'Prompt and answer may take {prompt + answer} tokens; expected up to {context}, '
                f"the model's context. Ask shorter, or for fewer tokens (max_tokens)."
            )
        return context - prompt

    @staticmethod
    def _chosen(question, scores):
        best = int(np.argmax(scores))
        return {
            'text': question.choices[best],
            'choice_index': best,
            'choice_scores': scores,
            'confidence': scores[best],
        }

    def _told(self, state, asked, logits, most, turn):
        """Free text of at most so many tokens, from the logits behind the question."""
        noted, text, vlm = Noted(sampler(*asked.sampling)), self._vlm.text, self._vlm
        sample = noted
        if asked.grammar:
            sample = vlm.json_schemas.sampler(asked.grammar, noted)
            text = sample.text

        def on_token(ids):
            if turn.is_heard:
                turn.tell('decode', text(ids).rstrip(HALF_A_LETTER), len(ids))

        start = state.next_position + len(asked.tokens)
        ids = vlm.decode(state.cache, logits, start, most, turn.check, sample, on_token)
        if asked.grammar and not sample.is_complete:
            raise InvalidRequestError(
                f'The answer did not fit into max_tokens {most}, and what was cut follows no '
                'json_schema. Allow more tokens, or a smaller document (maxLength, maxItems).'
            )
        if asked.grammar:
            vlm.json_schemas.check(text(ids))
        cut = f'The answer was cut at max_tokens {most}.' if len(ids) == most and not asked.grammar else ''
        return {
            'text': text(ids),
            'token_ids': tuple(ids),
            'tokens_generated': len(ids),
            'message': cut,
            'confidence': noted.least,
        }
